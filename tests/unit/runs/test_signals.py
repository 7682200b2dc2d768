"""Signals during training and outside of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from rlhf.runs import signals
from rlhf.runs.signals import StopRequest, stopped


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_recorded(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    with StopRequest() as request:
        assert request.signal == 0
        send(number)
        send(number)  # sent by the launcher too: the same request
        assert request.signal == number
    assert signal.getsignal(number) == before
    assert capsys.readouterr().err.strip() == signals.NOTICE


def test_a_second_sigint_interrupts_and_a_second_sigterm_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(signals, "SAME_REQUEST", -1.0)
    with StopRequest() as request:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert request.signal == signal.SIGTERM


def test_in_another_thread_no_handler_is_set() -> None:
    before = signal.getsignal(signal.SIGINT)

    def work() -> None:
        with StopRequest():
            pass

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) == before


def test_the_exit_code_is_the_shells() -> None:
    assert stopped(signal.SIGTERM, 3).exit_code == 143
    assert stopped(signal.SIGINT, 3).exit_code == 130


def test_sigterm_outside_of_training_closes_what_is_open() -> None:
    program = """
import os, signal, tempfile
from rlhf.runs.signals import end_cleanly_on_sigterm
end_cleanly_on_sigterm()
with tempfile.TemporaryDirectory() as folder:
    print(folder, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
print("continued")
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 143 and "continued" not in result.stdout and result.stderr == ""
    assert not os.path.exists(result.stdout.strip())  # noqa: PTH110


class InDestructor:
    """Gets a signal while it is destroyed, when Python discards exceptions."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        send(self.number)
        signal.getsignal(self.number)  # a line in which the exception is raised


def destroy_and_wait(number: int) -> None:
    InDestructor(number)
    time.sleep(20)


@pytest.mark.parametrize(
    ("number", "raised"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, signals.TerminatedError)],
)
def test_a_signal_during_a_garbage_collection_is_not_lost(
    monkeypatch: pytest.MonkeyPatch, number: int, raised: type[BaseException]
) -> None:
    others: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", others.append)
    before = signal.getsignal(signal.SIGTERM)
    signals.end_cleanly_on_sigterm()
    try:
        with pytest.raises(raised):
            destroy_and_wait(number)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not others


def test_other_discarded_exceptions_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    others: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", others.append)
    signals._resend_discarded_signals()

    class Failing:
        def __del__(self) -> None:
            raise ValueError("in a destructor")

    Failing()
    assert len(others) == 1
