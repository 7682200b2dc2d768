"""SIGTERM and SIGINT: a run that trains finishes its update and saves it; anything else ends at once, and cleans up after itself.

Exit codes are the shell's: 128 + the signal's number, 130 for SIGINT and 143 for SIGTERM.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

from rlhf.core.errors import StoppedError

SAME_REQUEST = 1.0
"""Seconds within which signals are one request: a terminal and a launcher both pass Ctrl-C on."""
NOTICE = "Stopping after this update, with a checkpoint. Ctrl-C again stops at once and loses the update."


class TerminatedError(SystemExit):
    """SIGTERM outside of training: ends the program like an error, so that what it opened is closed."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


def _terminate(*_: object) -> None:
    raise TerminatedError


def end_cleanly_on_sigterm() -> None:
    """Let SIGTERM unwind the program; Python itself would end without closing anything."""
    signal.signal(signal.SIGTERM, _terminate)


class StopRequest:
    """Within a `with` block the first SIGTERM or SIGINT is only recorded; a second SIGINT interrupts at once.

    Attributes:
        signal: the number of the signal that came; 0 while there is none.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # others cannot handle signals
            self._before = {
                number: signal.signal(number, self._record) for number in (signal.SIGTERM, signal.SIGINT)
            }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _record(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if not self.signal:
            self.signal, self._since = number, now
            print(f"\n{NOTICE}", file=sys.stderr, flush=True)
        elif number == signal.SIGINT and now - self._since > SAME_REQUEST:
            raise KeyboardInterrupt


def stopped(number: int, updates: int) -> StoppedError:
    """The error that ends a run after a signal; its message says how to resume."""
    return StoppedError(
        f"{signal.Signals(number).name} stopped the run after update {updates}, which is saved.",
        fix="type the command again with --resume",
        exit_code=128 + number,
    )
