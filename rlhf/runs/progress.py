"""How far a run is: one live line on a terminal, now and then a plain line in a log."""

from __future__ import annotations

import atexit
import functools
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from rlhf.distributed.processes import is_main

PLAIN_EVERY = 10.0
"""Seconds between two lines of a log."""
RECENT = 20
"""Step durations that the time left is estimated from."""

_on_screen: list[Progress] = []


class Progress:
    """Shows done/total, figures, time elapsed and time left.

    The time left is the median of recent step durations times the steps left. The first update only starts the clock:
    the step before it also paid for warming up, or for the steps of an earlier, now resumed run. A
    `with` block takes the live line off at its end; so do the last update and the end of the program.

    Args:
        total: how many units there are.
        unit: what is counted: "update", "pairs".
        console: where to; standard error if left out, so that results can be piped.
        clock: seconds that only grow.
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
        self._durations: deque[float] = deque(maxlen=RECENT)
        self._figures: dict[str, float] = {}
        self._live: Live | None = None

    def update(self, done: int, **figures: float) -> None:
        """Say that `done` units are done, with figures of the latest."""
        now = self._clock()
        if self._last is not None and done > self.done:
            self._durations.append((now - self._last) / (done - self.done))
        first, self.done, self._last, self._figures = self._last is None, done, now, figures
        if self._console.is_terminal:
            self._show_live()
        elif first or done >= self.total or now - self._shown >= PLAIN_EVERY:
            self._shown = now
            self._console.print(self.line(), soft_wrap=True)
        if done >= self.total:
            self.close()

    def line(self) -> Text:
        """The line as it reads now."""
        now = self._clock()
        parts = [f"{self.unit} {self.done}/{self.total}"]
        parts += [f"{name} {value:.4g}" for name, value in self._figures.items()]
        parts.append(f"elapsed {_minutes(now - self._started)}")
        if self.done < self.total:
            left = self.seconds_left()
            parts.append("time left unknown" if left is None else f"time left {_minutes(left)}")
        return Text("  ".join(parts), no_wrap=True, overflow="ellipsis")

    def seconds_left(self) -> float | None:
        """Seconds to the end from now; None until two steps are done."""
        if not self._durations or self._last is None:
            return None
        since_last = self._clock() - self._last
        return max(0.0, statistics.median(self._durations) * (self.total - self.done) - since_last)

    def close(self) -> None:
        """Leave the line as it is and give the terminal back."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            _on_screen.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _show_live(self) -> None:
        if self._live is None:
            self._live = Live(
                get_renderable=self.line,
                console=self._console,
                refresh_per_second=2,
                # What goes into a file or a pipe must not be drawn on the terminal instead.
                redirect_stdout=sys.stdout.isatty(),
                redirect_stderr=sys.stderr.isatty(),
            )
            self._live.start()
            _on_screen.append(self)
        self._live.refresh()


@atexit.register
def close_live_lines() -> None:
    """Close every live line, so that an error can be read, and the cursor is back at the end."""
    for progress in list(_on_screen):
        progress.close()


@functools.cache
def _standard_error() -> Console:
    # One console for all: two live lines on two consoles would overwrite one another.
    return Console(stderr=True, highlight=False, quiet=not is_main())


def _minutes(seconds: float) -> str:
    """As 0:07, 12:30 or 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
