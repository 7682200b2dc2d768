"""One trial as a separate process: starts it, follows its metrics, stops it if pruned, reads its result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.config.search import SearchConfig
from rlhf.core.errors import ConfigError, did_you_mean
from rlhf.runs.folder import METRICS

EVALUATION = "eval.json"
POLL_SECONDS = 0.5
GRACE_SECONDS = 30.0
"""From SIGTERM to SIGKILL."""
LAST_LINES = 12
MAX_NAMES = 40
"""Number of names that a message lists at most."""

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a trial's process ended: its exit code, and whether it was pruned."""

    code: int
    pruned: bool


@dataclass(frozen=True, slots=True)
class Result:
    """The value of a trial, with its 95 % interval if its evaluation has one."""

    value: float
    interval: tuple[float, float] | None


def command_words(search: SearchConfig, words: Sequence[str]) -> list[str]:
    """The command line of a trial, without its output."""
    start = [*search.launch, "-m", "rlhf.cli"] if search.launch else ["rlhf"]
    return [*start, search.command, str(search.config), *search.overrides, *words]


def start(command: Sequence[str], log: Path, lock: int) -> subprocess.Popen[bytes]:
    """Start a trial in a new process group, with its output appended to a log.

    Args:
        lock: the descriptor of a lock that the trial holds until it exits.

    Raises:
        ConfigError: the program of `launch` cannot be started.
    """
    program = [sys.executable, "-m", "rlhf.cli", *command[1:]] if command[0] == "rlhf" else list(command)
    with log.open("ab") as out:
        try:
            return subprocess.Popen(
                program,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(lock,),
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        except OSError as error:
            raise ConfigError(
                f"launch: {program[0]!r} cannot be started: {error.strerror}",
                allowed="a program and its options",
                fix="install it, or correct `launch`; without `launch` this Python is used",
            ) from None


def follow(process: subprocess.Popen[bytes], folder: Path, prune: Callable[[Row], bool]) -> Ended:
    """Wait for a trial; stop it if `prune` returns True for a row of its metrics.

    An exception during the wait, such as KeyboardInterrupt, stops the process too.
    """
    rows = MetricRows(folder / METRICS)
    try:
        while True:
            code = process.poll()  # before reading: a finished process has written all its rows
            if any(prune(row) for row in rows.new()) and code is None:
                stop(process)
                return Ended(0, pruned=True)
            if code is not None:
                return Ended(code, pruned=False)
            time.sleep(POLL_SECONDS)
    finally:
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


class MetricRows:
    """Follows the rows of a metrics file; a file that was replaced by a resumed run is read from its
    start."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file, self._offset = 0, 0

    def new(self) -> Iterator[Row]:
        """The complete lines since the last call."""
        with suppress(FileNotFoundError), self.path.open("rb") as lines:
            status = os.fstat(lines.fileno())
            if status.st_ino != self._file or status.st_size < self._offset:
                self._file, self._offset = status.st_ino, 0
            lines.seek(self._offset)
            for line in lines:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                with suppress(ValueError):  # cut off by a kill; the resumed run removes it
                    yield json.loads(line)


def read_result(folder: Path, metric: str) -> Result | None:
    """A trial's value from its eval.json; None if there is no file, or the value is not finite.

    Raises:
        ConfigError: eval.json has no such number.
    """
    try:
        evaluation = json.loads((folder / EVALUATION).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    known = {path: (beside, name) for path, beside, name in _numbers(evaluation)}
    if metric not in known:
        raise ConfigError(
            f"objective.metric: {folder / EVALUATION} has no number {metric!r}.{did_you_mean(metric, known)}",
            allowed=listed(known),
            fix="change objective.metric and run the same command again; this trial's result is kept",
        )
    beside, name = known[metric]
    return None if beside[name] is None else Result(float(beside[name]), _interval(beside, name))


def last_lines(log: Path) -> str:
    """The end of a log, indented."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(f"    {line}" for line in lines[-LAST_LINES:])


def listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    """A list of names for a message."""
    shown = list(names)
    more = f" and {len(shown) - MAX_NAMES} more" if len(shown) > MAX_NAMES else ""
    return ", ".join(shown[:MAX_NAMES]) + more


def _numbers(value: Row, path: str = "") -> Iterator[tuple[str, Row, str]]:
    """Every number by its dotted path, with its mapping and name; null stands for a number that was not
    finite."""
    for name, below in value.items():
        here = f"{path}.{name}" if path else name
        if isinstance(below, dict):
            yield from _numbers(below, here)
        elif below is None or (isinstance(below, int | float) and not isinstance(below, bool)):
            yield here, value, name


def _interval(beside: Row, name: str) -> tuple[float, float] | None:
    """The 95 % interval beside a number: `ci95` for `mean` or `accuracy`, or its namesake in `intervals`."""
    interval = (
        beside.get("ci95") if name in ("mean", "accuracy") else (beside.get("intervals") or {}).get(name)
    )
    match interval:
        case [int() | float() as low, int() | float() as high]:
            return float(low), float(high)
    return None
