"""Progress of a run: a live line on a terminal, a plain line every few seconds in a log."""

from __future__ import annotations

import atexit
import functools
import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich import progress as rich_progress
from rich.console import Console
from rich.text import Text

from rlhf.distributed.processes import is_main

PLAIN_EVERY = 10.0
"""Seconds between lines of a log."""
RECENT_SECONDS, RECENT_UPDATES = 60.0, 3
"""The speed is averaged over the last minute, and at least three updates."""

_live_lines: list[Progress] = []


class Speed:
    """Recent seconds per unit; a slow-down shows within three updates, or during one that is very slow."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, int]] = deque()  # (seconds, units) per update, oldest first

    def add(self, seconds: float, units: int) -> None:
        """Add an update."""
        self._recent.append((seconds, units))
        while (
            len(self._recent) > RECENT_UPDATES
            and sum(seconds for seconds, _ in self._recent) - self._recent[0][0] >= RECENT_SECONDS
        ):
            self._recent.popleft()

    def seconds_left(self, units: int, since_last: float) -> float | None:
        """Estimated seconds for `units` more units, `since_last` seconds after the last update.

        None before the first update.
        """
        if not self._recent:
            return None
        seconds = sum(seconds for seconds, _ in self._recent)
        done = sum(units for _, units in self._recent)
        latest = self._recent[-1][1]
        pace = seconds / done
        if since_last > pace * latest:  # the current update is already slow
            pace = (seconds + since_last) / (done + latest)
        return max(pace * units - since_last, pace * (units - latest), 0.0)


class Progress:
    """Show done/total, metrics, elapsed time and time left.

    The first update only starts the clock: the time before it includes warm-up, or the steps of an earlier
    run before a resume. The live line ends with the `with` block, the last update or the program.

    Args:
        total: the number of units.
        unit: its name: "update", "pairs".
        console: standard error by default, so that results can be piped.
        clock: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        total: int,
        unit: str,
        console: Console | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.unit, self.done = total, unit, 0
        self._console = console or _standard_error()
        self._clock = clock
        self._started = self._shown = clock()
        self._last: float | None = None
        self._speed = Speed()
        self._figures: dict[str, float] = {}
        self._live: rich_progress.Progress | None = None

    def update(self, done: int, **figures: float) -> None:
        """Record that `done` units are done, with metrics of the latest."""
        now = self._clock()
        if self._last is not None and done > self.done:
            self._speed.add(now - self._last, done - self.done)
        first, self.done, self._last, self._figures = self._last is None, done, now, figures
        if self._console.is_terminal:
            self._show_live()
        elif first or done >= self.total or now - self._shown >= PLAIN_EVERY:
            self._shown = now
            self._console.print(self.line(), soft_wrap=True)
        if done >= self.total:
            self.close()

    def line(self) -> Text:
        """The current line."""
        parts = [f"{self.unit} {self.done}/{self.total}"]
        parts += [f"{name} {value:.4g}" for name, value in self._figures.items()]
        parts.append(f"elapsed {_minutes(self._clock() - self._started)}")
        if self.done < self.total:
            left = self.seconds_left()
            parts.append("time left unknown" if left is None else f"time left {_minutes(left)}")
        return Text("  ".join(parts), no_wrap=True, overflow="ellipsis")

    def seconds_left(self) -> float | None:
        """Estimated seconds to the end at the recent speed; None before the second update."""
        if self._last is None:
            return None
        return self._speed.seconds_left(self.total - self.done, self._clock() - self._last)

    def close(self) -> None:
        """Stop the live line; it stays on the terminal."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            _live_lines.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _show_live(self) -> None:
        if self._live is None:
            self._live = rich_progress.Progress(
                rich_progress.BarColumn(bar_width=20),
                _Line(self),
                console=self._console,
                refresh_per_second=2,
                # Output to a file or pipe must not be redirected to the terminal.
                redirect_stdout=sys.stdout.isatty(),
                redirect_stderr=sys.stderr.isatty(),
            )
            self._live.add_task("", total=self.total)
            self._live.start()
            _live_lines.append(self)
        self._live.update(self._live.task_ids[0], completed=self.done, refresh=True)


class _Line(rich_progress.ProgressColumn):
    """Metrics and times beside the bar."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress

    def render(self, task: rich_progress.Task) -> Text:
        return self._progress.line()


@atexit.register
def close_live_lines() -> None:
    """Close every live line, so that errors are readable and the cursor is restored."""
    for progress in list(_live_lines):
        progress.close()


@functools.cache
def _standard_error() -> Console:
    # One console for all: live lines on two consoles would overwrite each other.
    return Console(stderr=True, highlight=False, quiet=not is_main())


def _minutes(seconds: float) -> str:
    """As 0:07, 12:30 or 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
