"""SIGTERM and SIGINT: training finishes and saves its update; anything else stops at once and cleans up.

Exit codes are the shell's: 128 + the signal's number, 130 for SIGINT and 143 for SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

from rlhf.core.errors import StoppedError

SAME_REQUEST = 1.0
"""Seconds within which signals count as one: a terminal and a launcher both send Ctrl-C."""
RESEND_SECONDS = 0.1
"""Before a discarded signal is sent again: the destructor must have returned."""
NOTICE = "Stopping after this update, with a checkpoint. Ctrl-C again stops at once and loses the update."


class TerminatedError(SystemExit):
    """SIGTERM outside of training: an exception, so that open resources are closed."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


def _terminate(*_: object) -> None:
    raise TerminatedError


def end_cleanly_on_sigterm() -> None:
    """Make SIGTERM raise an exception, as SIGINT does; by default Python exits without closing anything."""
    signal.signal(signal.SIGTERM, _terminate)
    _resend_discarded_signals()


def _resend_discarded_signals() -> None:
    """Send SIGINT or SIGTERM again when Python discards its exception.

    In a destructor, which may run during any garbage collection, Python prints an exception and continues.
    """
    show = sys.unraisablehook

    def hook(discarded: Any) -> None:
        for kind, number in ((TerminatedError, signal.SIGTERM), (KeyboardInterrupt, signal.SIGINT)):
            if issubclass(discarded.exc_type, kind):
                timer = threading.Timer(RESEND_SECONDS, os.kill, (os.getpid(), number))
                timer.daemon = True
                timer.start()
                return
        show(discarded)

    sys.unraisablehook = hook


class StopRequest:
    """Within a `with` block, record the first SIGTERM or SIGINT; a second SIGINT interrupts at once.

    Attributes:
        signal: the number of the recorded signal, or 0.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # only this thread can
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
    """The error that ends a run after a signal, with the command to resume."""
    return StoppedError(
        f"{signal.Signals(number).name} stopped the run after update {updates}, which is saved.",
        fix="run the command again with --resume",
        exit_code=128 + number,
    )
