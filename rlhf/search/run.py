"""What `rlhf search` does, as a straight line: take or propose a trial, run it, note its result, until all are done.

Killed at any moment, the same command goes on: finished trials are in the storage, and a trial whose search is gone is
resumed in its folder with the same values. Several of these processes may work on one study.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import Trial, TrialState

from rlhf.config.load import load_config
from rlhf.config.search import SearchConfig
from rlhf.core.errors import ConfigError, RunError
from rlhf.runs.folder import METRICS
from rlhf.runs.progress import Progress
from rlhf.search import attempt
from rlhf.search.attempt import Ended, Row
from rlhf.search.claims import Lock, forget, owner_lock, proposing, running_lock
from rlhf.search.folder import check_folder, check_trials, write_config
from rlhf.search.results import Results, trial_line, write_results
from rlhf.search.space import SCHEMAS, Space, base_config, read_space
from rlhf.search.storage import FINISHED, STORAGE_ERRORS, SharedStudy, open_study, reason

REFUSED = 2
"""Exit code of a command that was told something wrong."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Search:
    """A search that is open: what it was told, its space, its study, where trials go, whom it tells."""

    told: SearchConfig
    space: Space
    shared: SharedStudy
    say: Say

    @property
    def trials(self) -> Path:
        """Where the trials' run folders, logs and locks are."""
        return self.told.output / "trials"


@dataclass(frozen=True)
class Taken:
    """A trial that is ours to run, until `owner` is released."""

    trial: Trial
    owner: Lock
    resumed: bool

    @property
    def number(self) -> int:
        """The trial's number in the study."""
        return self.trial.number


def run_search(told: SearchConfig, place: Path, say: Say) -> Results:
    """Search until `trials` trials are there, or `timeout` has passed; returns what was found.

    Args:
        place: the search's config file, named in errors.
        say: where lines for the reader go.

    Raises:
        ConfigError: something told cannot be right, as far as it shows before or in the first trial.
        OutputError: the output folder is not this search's.
        RunError: the storage failed on the way.
    """
    base = base_config(told)
    space = read_space(told, place)
    check_folder(told.output)
    (told.output / "trials").mkdir(parents=True, exist_ok=True)
    with proposing(told.output / "trials"):
        shared = open_study(told, base.model_dump(mode="json"))
        check_trials(told, shared)
        write_config(told)
    search = Search(told, space, shared, say)
    started = time.monotonic()
    try:
        with _stoppable(), Progress(told.trials, "trial") as progress:
            progress.update(_finished(shared))  # starts the clock
            while taken := _take(search, started):
                try:
                    _run(search, taken)
                finally:
                    taken.owner.release()
                forget(search.trials, taken.number)
                found = write_results(told, space, shared)
                say(trial_line(found, taken.number))
                progress.update(_finished(shared))
        return write_results(told, space, shared)
    except STORAGE_ERRORS as error:
        stopped = f"the storage failed: {reason(error, told)}"
        raise RunError(stopped, fix="run the same command again when it is back") from None


def _take(search: Search, started: float) -> Taken | None:
    """A trial that another search left running here, or a new one; None where all are done or taken."""
    told, shared = search.told, search.shared
    with proposing(search.trials):
        running = [trial for trial in shared.trials() if trial.state == TrialState.RUNNING]
        for found in running:
            owner = owner_lock(search.trials, found.number)
            # A study in our own folder has no trial but ours; in a shared one it may run on another machine.
            if (told.storage is None or owner.path.exists()) and owner.take():
                trial = shared.open_trial(found.number, told.seed)
                search.space.propose(trial)
                return Taken(trial, owner, resumed=True)
        timed_out = told.timeout is not None and time.monotonic() - started >= told.timeout
        if timed_out or len(shared.trials()) >= told.trials:
            return None
        number = shared.study.ask().number
        trial = shared.open_trial(number, told.seed)
        search.space.propose(trial)
        owner = owner_lock(search.trials, number)
        owner.take()
        return Taken(trial, owner, resumed=False)


def _run(search: Search, taken: Taken) -> None:
    """Run one trial to its end and tell the study how it went.

    Raises:
        ConfigError: the study's first trial shows that something told cannot be right; it stays open.
    """
    told, study, trial = search.told, search.shared.study, taken.trial
    folder, log = search.trials / str(taken.number), search.trials / f"{taken.number}.log"
    first = _finished(search.shared) == 0
    words = search.space.words(trial.params)
    begun = time.monotonic()
    ended = _process(search, taken, folder, log, words)
    trial.set_user_attr("seconds", time.monotonic() - begun)
    if ended.pruned:
        study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
        return
    try:
        result = attempt.read_result(folder, told.objective.metric) if ended.code == 0 else None
        reason = _failure(ended, folder, told.objective.metric) if result is None else ""
    except ConfigError as error:
        if first:
            raise
        result, reason = None, f"failed: {error.found}"
    if result is not None:
        if first:
            _check_pruning_metric(told, folder)
        trial.set_user_attr("ci95", result.interval)
        study.tell(trial, result.value, skip_if_finished=True)
        return
    end = f"{log} ends with\n{attempt.last_lines(log)}"
    if first and ended.code == REFUSED:
        fix = f"mend {told.config} or the search's config, then run the same command again"
        raise ConfigError(f"the first trial was refused; {end}", fix=fix)
    search.say(end)
    trial.set_user_attr("reason", reason)
    study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)


def _process(search: Search, taken: Taken, folder: Path, log: Path, words: Sequence[str]) -> Ended:
    """The trial's process, from wherever an earlier one left it."""
    told, running = search.told, running_lock(search.trials, taken.number)
    if not running.take():
        search.say(
            f"trial {taken.number}: still runs, started by a search that was killed; waiting for its end"
        )
        running.take(wait=True)
    try:
        if taken.resumed and (folder / attempt.EVALUATION).exists():
            return Ended(0, pruned=False)
        try:
            load_config(told.config, SCHEMAS[told.command], [*told.overrides, *words], folder)
        except ConfigError as error:
            with log.open("a", encoding="utf-8") as out:
                out.write(f"Error: {error}\n")
            return Ended(REFUSED, pruned=False)
        command = [*attempt.command_words(told, words), "--output", str(folder)]
        if taken.resumed:
            search.say(f"trial {taken.number}: was cut off; it goes on in {folder}")
            command.append("--resume")
        process = attempt.start(command, log, running)
        running.release()  # from here on it is the process that holds it
        return attempt.follow(process, folder, _judge(search, taken.trial))
    finally:
        running.release()


def _judge(search: Search, trial: Trial) -> Callable[[Row], bool]:
    """Says at each row of metrics whether the trial is hopeless."""
    told, study = search.told.pruning, search.shared.study
    if told is None:
        return lambda _: False
    # The pruner compares in the objective's direction; a metric with another one is turned round.
    sign = 1.0 if told.direction == search.told.objective.direction else -1.0
    number = trial.number
    known = next(found for found in search.shared.trials() if found.number == number)
    seen = set(known.intermediate_values)

    def hopeless(row: Row) -> bool:
        value, step = row.get(told.metric), row.get("step")
        if not isinstance(value, int | float) or step is None or step in seen:
            return False
        seen.add(step)
        trial.report(sign * value, step)
        behind = trial.should_prune()  # asked every time: halving notes who reached which update
        completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return behind and step >= told.warmup_updates and len(completed) >= told.startup_trials

    return hopeless


def _failure(ended: Ended, folder: Path, metric: str) -> str:
    if ended.code < 0:
        name = signal.Signals(-ended.code).name
        return f"failed: its process was ended by {name}" + (
            ", as happens when memory runs out" if name == "SIGKILL" else ""
        )
    if ended.code > 0:
        return f"failed with exit code {ended.code}"
    if (folder / attempt.EVALUATION).exists():
        return f"failed: {metric} is not a finite number"
    return f"failed: it left no {attempt.EVALUATION}"


def _check_pruning_metric(told: SearchConfig, folder: Path) -> None:
    """A metric that never comes would mean a search that never prunes, and does not say so."""
    if told.pruning is None:
        return
    rows = list(attempt.MetricRows(folder / METRICS).new())
    if not any(told.pruning.metric in row for row in rows):
        names = sorted({name for row in rows for name in row} - {"step"})
        raise ConfigError(
            f"pruning.metric: {folder / METRICS} has no {told.pruning.metric!r}",
            allowed=attempt.listed(names),
            fix="change pruning.metric and run the same command again; this trial's result is kept",
        )


def _finished(shared: SharedStudy) -> int:
    return sum(trial.state in FINISHED for trial in shared.trials())


@contextmanager
def _stoppable() -> Iterator[None]:
    """Being told to end works as Ctrl-C does: the trial's process is stopped, and the trial stays open."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
