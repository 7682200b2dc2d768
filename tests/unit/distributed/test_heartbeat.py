"""Heartbeats between machines: who is lost, and who only finished or was suspended."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from rlhf.core.errors import RunError
from rlhf.distributed import heartbeat
from rlhf.distributed.heartbeat import Heartbeat


class Store(dict[str, bytes]):
    """As much of torch's store as heartbeats use."""

    def set(self, key: str, value: str) -> None:
        self[key] = value.encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)

    def get(self, key: str) -> bytes:  # type: ignore[override]
        return self[key]


def beats(count: int) -> list[Heartbeat]:
    store = Store()
    return [Heartbeat(store, machine, count, lost_after=30, period=10) for machine in range(count)]


def test_a_machine_is_lost_after_three_periods_of_silence() -> None:
    first, second, third = beats(3)
    for _ in range(5):
        for machine in (first, second, third):
            machine.exchange()
        assert first.silent() == second.silent() == third.silent() == []
    lost = []
    for _ in range(3):
        first.exchange()
        third.exchange()
        lost.append((first.silent(), third.silent()))
    # The first period after the last heartbeat already counted once before it was read.
    assert lost[-1] == ([1], [1])
    assert lost[0] == ([], [])


def test_a_machine_that_never_answers_is_lost() -> None:
    first, _ = beats(2)
    assert [first.silent() for _ in range(3)] == [[], [], [1]]


def test_a_machine_that_finished_is_not_lost() -> None:
    first, second = beats(2)
    second.finish()
    second.exchange()  # the other thread may be in it
    first.exchange()
    assert all(first.silent() == [] for _ in range(10))


def test_a_store_that_cannot_be_reached_counts_as_silence() -> None:
    store, done = Store(), threading.Event()

    def fail(*_: Any) -> None:
        raise RuntimeError("Connection reset by peer")

    store.set = fail  # type: ignore[method-assign]
    lost: list[int] = []

    def on_loss(machines: Any) -> None:
        lost.extend(machines)
        done.set()

    Heartbeat(store, 0, 2, lost_after=0.03, period=0.01).start(on_loss)
    assert done.wait(10) and lost == [1]


def test_only_one_process_of_a_machine_sends_them_and_only_between_machines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GROUP_WORLD_SIZE", "1")
    assert heartbeat.start_between_machines() is None
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert heartbeat.start_between_machines() is None


def test_the_error_says_how_to_continue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUP_WORLD_SIZE", "4")
    error = heartbeat.lost_machines([1, 3])
    assert isinstance(error, RunError) and error.exit_code == 1
    assert "1, 3" in error.found and "--resume" in error.fix
