"""Runs the trials of a search in Optuna's optimize loop, each as a separate process.

search.json  search.csv  search-*.svg  report.html  study.db (unless `storage` says otherwise)
trials/N/ (a run folder)  trials/N.log (output of its command)

Optuna sends a heartbeat for a running trial. The trial of a killed process is queued again, and resumed in
its folder with the same values. Several processes may work on one study.
"""

from __future__ import annotations

import fcntl
import math
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from rlhf.config.reading.values import as_yaml
from rlhf.config.search import SearchConfig
from rlhf.core.errors import ConfigError, RunError
from rlhf.runs.folder import check_is_run_folder, in_use
from rlhf.runs.progress import Progress
from rlhf.search import attempt, storage
from rlhf.search.results import Results, draw, read_results, summary, trial_line, write_results
from rlhf.search.space import Space, base_config, read_space, words_of
from rlhf.search.storage import STORAGE_ERRORS, attempts, finished, trials_of

TRIALS = "trials"
REFUSED = 2
"""Exit code of a command with invalid input."""


def plan(config: SearchConfig, place: Path) -> list[str]:
    """The output of `--dry-run`: the space, the state of the study, and the next trial's command.

    Raises:
        ConfigError: the config is invalid, or the storage cannot be used.
    """
    base_config(config)
    space, study, number = read_space(config, place), storage.existing_study(config), 0
    lines = [f"{config.trials} trials of {config.command}, over"]
    for name, key in config.parameters.items():
        lines.append(f"  {name}: {as_yaml(key.model_dump(exclude_none=True, exclude_defaults=True))}")
    copy = optuna.create_study(direction=config.objective.direction)  # in memory, with the same proposals
    if study is None:
        lines.append(f"The study {config.study!r} is new.")
    else:
        lines += [f"The study {config.study!r} exists.", *summary(read_results(config, space, study))]
        if len(trials_of(study)) >= config.trials:
            return [*lines, "No further trial would start."]
        copy.add_trials([trial for trial in study.get_trials() if trial.state != TrialState.WAITING])
        number = len(attempts(study))
    copy.sampler = storage.sampler(config.seed, number)
    trial = copy.ask()
    space.propose(trial)
    words = words_of(space.values(trial.params))
    command = attempt.command_words(config, words, f"{config.output}/{TRIALS}/{number}")
    return [*lines, "The next new trial:", shlex.join(command)]


def run_search(config: SearchConfig, place: Path, say: Callable[[str], None]) -> Results:
    """Search until `trials` trials are finished, or `timeout` has passed; returns the results.

    Args:
        place: the path of the search's config, for errors.
        say: prints a line.

    Raises:
        ConfigError: the config is invalid, before or in the first trial.
        OutputError: the output folder has other content.
        RunError: the storage failed during the search.
    """
    base, space = base_config(config), read_space(config, place)
    check_is_run_folder(config.output, resume=True, config=TRIALS)
    (config.output / TRIALS).mkdir(exist_ok=True)
    with (config.output / ".lock").open("ab") as lock:  # SQLite's tables are created once
        fcntl.flock(lock, fcntl.LOCK_EX)
        study = storage.open_study(config, base.model_dump(mode="json"))
    search = Search(config, space, study, say)
    try:
        with Progress(config.trials, "trial") as progress:
            progress.update(finished(study))  # starts the clock
            while search.wait_for_trial():
                study.optimize(search.objective, n_trials=1, callbacks=[search.report])
                progress.update(finished(study))
        results = write_results(config, space, study)
        draw(study, results, config.output)
    except STORAGE_ERRORS as error:
        stopped = f"the storage failed: {storage.reason(error, config)}"
        raise RunError(stopped, fix="run the same command again when it is back") from None
    return results


class Search:
    """One of the processes of a search."""

    def __init__(
        self, config: SearchConfig, space: Space, study: optuna.Study, say: Callable[[str], None]
    ) -> None:
        self.config, self.space, self.study, self.say = config, space, study, say
        self.trials = config.output / TRIALS
        self.started = time.monotonic()

    def wait_for_trial(self) -> bool:
        """Whether a trial is left for this process.

        At the start, and when all trials have started, wait for the heartbeat of running trials: without one
        their process is gone, and they are queued again.
        """
        called = time.monotonic()
        while True:
            optuna.storages.fail_stale_trials(self.study)
            states = [trial.state for trial in trials_of(self.study).values()]
            now, enough = time.monotonic(), len(states) >= self.config.trials
            if self.config.timeout is not None and now - self.started >= self.config.timeout:
                return False
            if TrialState.WAITING in states:
                return True
            waited = now - (called if enough else self.started)
            if TrialState.RUNNING not in states or waited > storage.GRACE_SECONDS + 1:
                return not enough
            time.sleep(attempt.POLL_SECONDS)

    def report(self, study: optuna.Study, ended: FrozenTrial) -> None:
        """Write the results, and print those of the trial that has ended."""
        results = write_results(self.config, self.space, study)
        numbers = {number for number, last in trials_of(study).items() if last.number == ended.number}
        for trial in results["trials"]:
            if trial["number"] in numbers:
                self.say(trial_line(trial))

    def objective(self, trial: Trial) -> float:
        """The value of a trial; NaN if it has failed.

        Raises:
            ConfigError: the first trial of the study found the config invalid.
        """
        numbers = {last.number: number for number, last in trials_of(self.study).items()}
        number = numbers[trial.number]
        if sum(other < number for other in numbers.values()) >= self.config.trials:
            return math.nan  # another process started the last trial meanwhile
        self.study.sampler = storage.sampler(self.config.seed, number)
        self.space.propose(trial)
        folder, log = self.trials / str(number), self.trials / f"{number}.log"
        begun = time.monotonic()
        try:
            code = self._run(trial, folder, log)
            trial.set_user_attr("seconds", time.monotonic() - begun)
            if code is None:
                raise optuna.TrialPruned
            return self._value(trial, code, folder, log)
        except (ConfigError, KeyboardInterrupt):  # to be resumed by the next search
            storage.retry()(self.study, self.study.get_trials()[trial.number])
            raise

    def _run(self, trial: Trial, folder: Path, log: Path) -> int | None:
        """Run the trial's process, resuming an earlier attempt; returns as `attempt.run`."""
        if in_use(folder):
            self.say(
                f"trial {folder.name}: still running, started by a search that was killed; waiting for it"
            )
        while in_use(folder):
            time.sleep(attempt.POLL_SECONDS)
        resumed = storage.RETRY_OF in self.study.get_trials(deepcopy=False)[trial.number].system_attrs
        if resumed and (folder / attempt.EVALUATION).exists():
            return 0
        words = words_of(self.space.values(trial.params))
        command = attempt.command_words(self.config, words, str(folder))
        if resumed:
            self.say(f"trial {folder.name}: was interrupted; resuming it in {folder}")
            command.append("--resume")
        return attempt.run(command, folder, log, self._pruning(trial))

    def _pruning(self, trial: Trial) -> Callable[[attempt.MetricsRow], bool]:
        """A function that reports a row of metrics to the pruner and returns whether to stop the trial."""
        config = self.config.pruning
        if config is None:
            return lambda _: False
        # The pruner compares in the direction of the objective; a metric with the other direction is negated.
        sign = 1.0 if config.direction == self.config.objective.direction else -1.0
        reported = set(self.study.get_trials(deepcopy=False)[trial.number].intermediate_values)

        def prune(row: attempt.MetricsRow) -> bool:
            value, step = row.get(config.metric), row["step"]
            if not isinstance(value, int | float) or step in reported:
                return False
            reported.add(step)
            trial.report(sign * value, step)
            behind = trial.should_prune()  # called for every row: halving stores the reached updates
            completed = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            return behind and len(completed) >= config.startup_trials

        return prune

    def _value(self, trial: Trial, code: int, folder: Path, log: Path) -> float:
        """The value of a trial with this exit code; if it failed, NaN, and the reason is stored."""
        first = finished(self.study) == 0
        failure = f"failed with exit code {code}"
        if code < 0:
            failure = f"failed: its process was killed by {signal.Signals(-code).name}"
        elif code == 0:
            failure = f"failed: {attempt.EVALUATION} is missing, or its value is not a finite number"
            try:
                if (result := attempt.read_result(self.config, folder)) is not None:
                    trial.set_user_attr("ci95", result[1])
                    return result[0]
            except ConfigError as error:
                if first:
                    raise
                failure = f"failed: {error.found}"
        end = f"{log} ends with\n{attempt.last_lines(log)}"
        if first and code == REFUSED:
            fix = f"correct {self.config.config} or the search's config, then run the same command again"
            raise ConfigError(f"the first trial was refused; {end}", fix=fix)
        self.say(end)
        trial.set_user_attr(storage.REASON, failure)
        return math.nan
