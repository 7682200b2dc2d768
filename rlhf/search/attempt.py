"""One trial as a separate process: its command line, its end, its metrics and its result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rlhf.config.search import SearchConfig
from rlhf.core.errors import ConfigError, did_you_mean
from rlhf.report.files import json_lines
from rlhf.runs.folder import METRICS

EVALUATION = "eval.json"
POLL_SECONDS = 0.5
GRACE_SECONDS = 30.0
"""From SIGTERM to SIGKILL."""
LAST_LINES, MAX_NAMES = 12, 40
"""Number of lines of a log, and of names, that a message has at most."""

MetricsRow = Mapping[str, Any]
TrialResult = tuple[float, tuple[float, float] | None]
"""The value of a trial, with its 95 % interval if its evaluation has one."""


def command_words(search: SearchConfig, words: Sequence[str], output: str) -> list[str]:
    """The command line of a trial."""
    start = [*search.launch, "-m", "rlhf.cli"] if search.launch else ["rlhf"]
    return [*start, search.command, str(search.config), *search.overrides, *words, "--output", output]


def run(command: Sequence[str], folder: Path, log: Path, prune: Callable[[MetricsRow], bool]) -> int | None:
    """Run a trial in a new process group, and append its output to `log`.

    Args:
        prune: called again and again with the rows of the trial's metrics; True stops the trial.

    Returns:
        The exit code, negative after a signal; None if the trial was pruned.

    Raises:
        ConfigError: the program of `launch` cannot be started.
    """
    program = [sys.executable, "-m", "rlhf.cli", *command[1:]] if command[0] == "rlhf" else list(command)
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with log.open("ab") as out:
        try:
            process = subprocess.Popen(
                program, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, env=env
            )
        except OSError as error:
            raise ConfigError(
                f"launch: {program[0]!r} cannot be started: {error.strerror}",
                allowed="a program and its options",
                fix="install it, or correct `launch`; without `launch` this Python is used",
            ) from None
    try:
        while True:
            code = process.poll()  # before reading: a finished process has written all its rows
            if any(prune(row) for row in json_lines(folder / METRICS, [])) and code is None:
                return None
            if code is not None:
                return code
            time.sleep(POLL_SECONDS)
    finally:  # also after an exception, such as KeyboardInterrupt
        if process.poll() is None:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a trial's process group: SIGTERM, then SIGKILL."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    with suppress(ProcessLookupError):  # workers that its main process left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def read_result(search: SearchConfig, folder: Path) -> TrialResult | None:
    """A trial's value from its eval.json; None if there is no file, or the value is not finite.

    Raises:
        ConfigError: eval.json has no such number, or the metrics no such metric to prune by.
    """
    if not (folder / EVALUATION).exists():
        return None
    values = dict(_numbers(json.loads((folder / EVALUATION).read_text(encoding="utf-8"))))
    _check_known("objective.metric", search.objective.metric, values, folder / EVALUATION)
    if search.pruning is not None:
        metrics = {name for row in json_lines(folder / METRICS, []) for name in row}
        _check_known("pruning.metric", search.pruning.metric, sorted(metrics), folder / METRICS)
    return values[search.objective.metric]


def last_lines(log: Path) -> str:
    """The end of a log, indented."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(f"    {line}" for line in lines[-LAST_LINES:])


def _check_known(key: str, metric: str, known: Collection[str], file: Path) -> None:
    if metric not in known:
        raise ConfigError(
            f"{key}: {file} has no {metric!r}.{did_you_mean(metric, known)}",
            allowed=", ".join(list(known)[:MAX_NAMES]),
            fix=f"change {key} and run the same command again; this trial's result is kept",
        )


def _numbers(mapping: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, TrialResult | None]]:
    """Every number by its dotted path, with its interval; null is a number that was not finite."""
    for name, value in mapping.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{path}{name}.")
        elif value is None:
            yield f"{path}{name}", None
        elif isinstance(value, int | float) and not isinstance(value, bool):
            beside = name in ("mean", "accuracy")
            interval = mapping.get("ci95") if beside else (mapping.get("intervals") or {}).get(name)
            ends = tuple(interval) if isinstance(interval, list) and None not in interval else None
            yield f"{path}{name}", (float(value), ends)
