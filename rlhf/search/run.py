"""Runs the trials of a search in Optuna's optimize loop, each as a separate process.

Finished trials are in the storage. Each process sends Optuna's heartbeat for its trial; the trial of a killed
process is queued again, and resumed in its folder with the same values. Several processes may work on one
study.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna.exceptions import TrialPruned
from optuna.trial import Trial, TrialState

from rlhf.config.load import load_config
from rlhf.config.search import SearchConfig
from rlhf.core.errors import ConfigError, RunError
from rlhf.runs.folder import METRICS
from rlhf.runs.progress import Progress
from rlhf.search import attempt, storage
from rlhf.search.attempt import Ended, Row
from rlhf.search.folder import check_folder, check_trials, locked, write_config
from rlhf.search.results import Results, trial_line, write_results
from rlhf.search.space import SCHEMAS, Space, base_config, read_space
from rlhf.search.storage import STORAGE_ERRORS, SharedStudy, is_surplus, open_study, reason

NONE = -1
REFUSED = 2
"""Exit code of a command with invalid input."""

Say = Callable[[str], None]


class TrialFailedError(Exception):
    """A trial failed; the search continues."""


def run_search(config: SearchConfig, place: Path, say: Say) -> Results:
    """Search until `trials` trials are finished, or `timeout` has passed; returns the results.

    Args:
        place: the path of the search's config, for errors.
        say: prints a line.

    Raises:
        ConfigError: the config is invalid, before or in the first trial.
        OutputError: the output folder has other content.
        RunError: the storage failed during the search.
    """
    base = base_config(config)
    space = read_space(config, place)
    check_folder(config.output)
    (config.output / "trials").mkdir(parents=True, exist_ok=True)
    with locked(config.output / "trials" / ".queue"):
        shared = open_study(config, base.model_dump(mode="json"))
        check_trials(config, shared)
        write_config(config)
    search = Search(config, space, shared, say)
    try:
        with _stoppable(), Progress(config.trials, "trial") as progress:
            progress.update(shared.finished())  # starts the clock
            while search.queue_trial():
                search.run_trial()
                progress.update(shared.finished())
        return write_results(config, space, shared)
    except STORAGE_ERRORS as error:
        stopped = f"the storage failed: {reason(error, config)}"
        raise RunError(stopped, fix="run the same command again when it is back") from None


class Search:
    """One of the processes of a search."""

    def __init__(self, config: SearchConfig, space: Space, shared: SharedStudy, say: Say) -> None:
        self.config, self.space, self.shared, self.say = config, space, shared, say
        self.trials = config.output / "trials"
        self.started = time.monotonic()
        self.idle_since: float | None = None
        self.number = NONE
        """Number of the running trial."""

    def queue_trial(self) -> bool:
        """Wait until a trial is queued, interrupted ones first; False if no trial is left for this process.

        At the start, and when all trials have started, wait for the heartbeat of running trials: without one
            their process is gone, and they are queued again.
        """
        while True:
            with locked(self.trials / ".queue"):
                self.shared.requeue_stale()
                trials = self.shared.trials()
                states = [trial.state for trial in trials.values()]
                now = time.monotonic()
                timed_out = self.config.timeout is not None and now - self.started >= self.config.timeout
                if timed_out:
                    return False
                if TrialState.WAITING in states:
                    return True
                if len(trials) < self.config.trials:
                    hold_from, self.idle_since = self.started, None
                else:
                    hold_from = self.idle_since = self.idle_since or now
                if TrialState.RUNNING not in states or now - hold_from > storage.GRACE_SECONDS + 1:
                    if len(trials) >= self.config.trials:
                        return False
                    self.shared.study.enqueue_trial({})
                    return True
            time.sleep(attempt.POLL_SECONDS)

    def run_trial(self) -> None:
        """Run a queued trial and write the results.

        Raises:
            ConfigError: the first trial of the study found the config invalid; the trial stays open.
        """
        self.number = NONE
        try:
            self.shared.study.optimize(self._objective, n_trials=1, catch=(TrialFailedError,))
        except (ConfigError, KeyboardInterrupt):
            if self.number != NONE:
                self.shared.requeue(self.number)
            raise
        results = write_results(self.config, self.space, self.shared)
        if self.number != NONE:
            self.say(trial_line(results, self.number))

    def _objective(self, trial: Trial) -> float:
        stored = self.shared.study.get_trials(deepcopy=False)[trial.number]
        if is_surplus(stored):  # another process took the queued trial
            raise TrialPruned
        self.number = number = self.shared.number_of(trial)
        first = self.shared.finished() == 0
        self.shared.seed(self.config.seed, number)
        self.space.propose(trial)
        folder, log = self.trials / str(number), self.trials / f"{number}.log"
        begun = time.monotonic()
        ended = self._process(trial, folder, log, resumed=storage.RETRY_OF in stored.system_attrs)
        trial.set_user_attr("seconds", time.monotonic() - begun)
        if ended.pruned:
            raise TrialPruned
        return self._value(trial, ended, folder, log, first=first)

    def _value(self, trial: Trial, ended: Ended, folder: Path, log: Path, *, first: bool) -> float:
        """The value of a finished trial; a failure is stored with its reason."""
        metric = self.config.objective.metric
        try:
            result = attempt.read_result(folder, metric) if ended.code == 0 else None
            failure = _failure(ended, folder, metric) if result is None else ""
        except ConfigError as error:
            if first:
                raise
            result, failure = None, f"failed: {error.found}"
        if result is not None:
            if first:
                _check_pruning_metric(self.config, folder)
            trial.set_user_attr("ci95", result.interval)
            return result.value
        end = f"{log} ends with\n{attempt.last_lines(log)}"
        if first and ended.code == REFUSED:
            fix = f"correct {self.config.config} or the search's config, then run the same command again"
            raise ConfigError(f"the first trial was refused; {end}", fix=fix)
        self.say(end)
        trial.set_user_attr("reason", failure)
        raise TrialFailedError(failure)

    def _process(self, trial: Trial, folder: Path, log: Path, *, resumed: bool) -> Ended:
        """Run the trial's process, resuming an earlier attempt."""
        config, words = self.config, self.space.words(trial.params)

        def waiting() -> None:
            self.say(
                f"trial {self.number}: still running, started by a search that was killed; waiting for it"
            )

        with locked(self.trials / f".{self.number}.running", waiting=waiting) as lock:
            if resumed and (folder / attempt.EVALUATION).exists():
                return Ended(0, pruned=False)
            try:
                load_config(config.config, SCHEMAS[config.command], [*config.overrides, *words], folder)
            except ConfigError as error:
                with log.open("a", encoding="utf-8") as out:
                    out.write(f"Error: {error}\n")
                return Ended(REFUSED, pruned=False)
            command = [*attempt.command_words(config, words), "--output", str(folder)]
            if resumed:
                self.say(f"trial {self.number}: was interrupted; resuming it in {folder}")
                command.append("--resume")
            process = attempt.start(command, log, lock)
            return attempt.follow(process, folder, _should_prune(self, trial))


def _should_prune(search: Search, trial: Trial) -> Callable[[Row], bool]:
    """A function that reports each row of metrics to the pruner and returns whether to stop the trial."""
    config, study = search.config.pruning, search.shared.study
    if config is None:
        return lambda _: False
    # The pruner compares in the direction of the objective; a metric with the other direction is negated.
    sign = 1.0 if config.direction == search.config.objective.direction else -1.0
    seen = set(study.get_trials(deepcopy=False)[trial.number].intermediate_values)

    def prune(row: Row) -> bool:
        value, step = row.get(config.metric), row.get("step")
        if not isinstance(value, int | float) or step is None or step in seen:
            return False
        seen.add(step)
        trial.report(sign * value, step)
        behind = trial.should_prune()  # called for every row: halving stores the reached updates
        completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return behind and step >= config.warmup_updates and len(completed) >= config.startup_trials

    return prune


def _failure(ended: Ended, folder: Path, metric: str) -> str:
    if ended.code < 0:
        name = signal.Signals(-ended.code).name
        return f"failed: its process was killed by {name}" + (
            ", probably out of memory" if name == "SIGKILL" else ""
        )
    if ended.code > 0:
        return f"failed with exit code {ended.code}"
    if (folder / attempt.EVALUATION).exists():
        return f"failed: {metric} is not a finite number"
    return f"failed: it left no {attempt.EVALUATION}"


def _check_pruning_metric(config: SearchConfig, folder: Path) -> None:
    """Check that the first trial has the metric of the pruner: without it no trial would be pruned."""
    if config.pruning is None:
        return
    rows = list(attempt.MetricRows(folder / METRICS).new())
    if not any(config.pruning.metric in row for row in rows):
        names = sorted({name for row in rows for name in row} - {"step"})
        raise ConfigError(
            f"pruning.metric: {folder / METRICS} has no {config.pruning.metric!r}",
            allowed=attempt.listed(names),
            fix="change pruning.metric and run the same command again; this trial's result is kept",
        )


@contextmanager
def _stoppable() -> Iterator[None]:
    """Treat SIGTERM and SIGHUP like Ctrl-C: the trial's process is stopped, and the trial stays open."""

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
