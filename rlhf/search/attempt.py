"""One trial as a process of its own: start it, follow its figures, stop it if it falls behind, read its result."""

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
MOST_NAMES = 40
"""How many names a message lists at most."""

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a trial's process ended: its exit code, or that it was stopped as hopeless."""

    code: int
    pruned: bool


@dataclass(frozen=True, slots=True)
class Result:
    """What a trial reached, with the 95 % interval where its evaluation has one."""

    value: float
    interval: tuple[float, float] | None


def command_words(search: SearchConfig, words: Sequence[str]) -> list[str]:
    """The command of a trial without its output: as a person would type it."""
    start = [*search.launch, "-m", "rlhf.cli"] if search.launch else ["rlhf"]
    return [*start, search.command, str(search.config), *search.overrides, *words]


def start(command: Sequence[str], log: Path, lock: int) -> subprocess.Popen[bytes]:
    """Start a trial in a process group of its own, its output appended to a log.

    Args:
        lock: the descriptor of a lock that the trial holds until it ends.

    Raises:
        ConfigError: the program that `launch` names is not there.
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
            ) from None


def follow(process: subprocess.Popen[bytes], folder: Path, hopeless: Callable[[Row], bool]) -> Ended:
    """Wait for a trial, showing each row of its metrics to `hopeless`; where that says yes, stop it.

    Whatever ends the wait otherwise, such as an interruption, stops the process too.
    """
    rows = MetricRows(folder / METRICS)
    try:
        while True:
            code = process.poll()  # before reading: rows of a process that has ended are all there
            if any(hopeless(row) for row in rows.new()) and code is None:
                stop(process)
                return Ended(0, pruned=True)
            if code is not None:
                return Ended(code, pruned=False)
            time.sleep(POLL_SECONDS)
    finally:
        if process.poll() is None:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a trial's process group: politely, then by force."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    with suppress(ProcessLookupError):  # workers that its main process left behind
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class MetricRows:
    """The rows of a metrics file as they come. A resumed run replaces the file: then it is read anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file, self._offset = 0, 0

    def new(self) -> Iterator[Row]:
        """The whole lines since the last call."""
        with suppress(FileNotFoundError), self.path.open("rb") as lines:
            found = os.fstat(lines.fileno())
            if found.st_ino != self._file or found.st_size < self._offset:
                self._file, self._offset = found.st_ino, 0
            lines.seek(self._offset)
            for line in lines:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                with suppress(ValueError):  # torn by a kill; the run that goes on takes it out
                    yield json.loads(line)


def read_result(folder: Path, metric: str) -> Result | None:
    """A trial's value out of its eval.json; None where the run left none, or the value is not a finite number.

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
    """Names for a message."""
    shown = list(names)
    more = f" and {len(shown) - MOST_NAMES} more" if len(shown) > MOST_NAMES else ""
    return ", ".join(shown[:MOST_NAMES]) + more


def _numbers(value: Row, path: str = "") -> Iterator[tuple[str, Row, str]]:
    """Every number (or null, which stands for one that was not finite) by its dotted path: where it stands, its name."""
    for name, below in value.items():
        here = f"{path}.{name}" if path else name
        if isinstance(below, dict):
            yield from _numbers(below, here)
        elif below is None or (isinstance(below, int | float) and not isinstance(below, bool)):
            yield here, value, name


def _interval(beside: Row, name: str) -> tuple[float, float] | None:
    """The 95 % interval beside a number: `ci95` for `mean` or `accuracy`, or its namesake in `intervals`."""
    found = beside.get("ci95") if name in ("mean", "accuracy") else (beside.get("intervals") or {}).get(name)
    match found:
        case [int() | float() as low, int() | float() as high]:
            return float(low), float(high)
    return None
