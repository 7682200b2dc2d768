"""Responses that are sampled while people annotate."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest
from fastapi.testclient import TestClient

from rlhf.annotate.app import Settings, build_app
from rlhf.annotate.live import AHEAD, ATTEMPTS, LivePairs
from rlhf.annotate.store import Store
from rlhf.annotate.tasks import Task
from rlhf.core.errors import DataError
from rlhf.core.records import Conversation, Message


def prompt(text: str) -> Conversation:
    return (Message("user", text),)


@pytest.fixture
def empty(tmp_path: Path) -> Store:
    return Store(tmp_path / "live.db")


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_pairs_are_sampled_a_few_ahead_of_the_annotators(empty: Store) -> None:
    prompts = [prompt(f"Q{n}") for n in range(6)]
    live = LivePairs(empty, prompts, lambda p, seed: (f"A to {p[-1].content}", "B"))
    ended = []
    live.start(lambda: ended.append(True))
    until(lambda: empty.count_tasks() == AHEAD)
    time.sleep(0.1)
    assert empty.count_tasks() == AHEAD, "no further task before one is opened"
    client = TestClient(build_app(empty, Settings(1), lambda: live.waiting))
    client.post("/api/session", json={"token": empty.add_annotator("ana")})
    first = client.get("/api/next").json()
    assert first["task"]["prompt"] == [{"role": "user", "content": "Q0"}] and first["waiting"]
    until(lambda: empty.count_tasks() == AHEAD + 1)
    live.close()
    assert ended == [True]
    assert [task.response_1 for task in empty.tasks().values()] == [f"A to Q{n}" for n in range(4)]


def test_closing_waits_for_the_pair_that_is_being_sampled(empty: Store) -> None:
    started, done = Event(), []

    def sample(p: Conversation, seed: int) -> tuple[str, str]:
        started.set()
        time.sleep(0.3)
        done.append(p)
        return "A", "B"

    live = LivePairs(empty, [prompt("Q0"), prompt("Q1")], sample)
    live.start(lambda: None)
    started.wait(10)
    live.close()
    assert (len(done), empty.count_tasks()) == (1, 1)


def test_a_page_without_a_task_asks_again_while_more_will_come(empty: Store) -> None:
    live = LivePairs(empty, [prompt("Q")], lambda p, seed: ("A", "B"))
    client = TestClient(build_app(empty, Settings(1), lambda: live.waiting))
    client.post("/api/session", json={"token": empty.add_annotator("ana")})
    assert client.get("/api/next").json() == {"task": None, "waiting": True}
    assert live.add_next()
    assert client.get("/api/next").json()["task"]["number"] == 1
    assert not live.waiting


def test_equal_and_blank_responses_are_sampled_again_then_skipped(empty: Store) -> None:
    seeds = []

    def sample(p: Conversation, seed: int) -> tuple[str, str]:
        seeds.append(seed)
        if p[-1].content == "second seed":
            return "same", "same" if seed == 0 else "other"
        return ("same", "same ") if p[-1].content == "equal" else ("text", " ")

    live = LivePairs(empty, [prompt("second seed"), prompt("equal"), prompt("blank")], sample)
    assert [live.add_next() for _ in range(3)] == [True, False, False]
    assert seeds == [0, 1, *range(ATTEMPTS), *range(ATTEMPTS)]
    assert [(t.response_1, t.response_2) for t in empty.tasks().values()] == [("same", "other")]
    assert sum(live.skipped.values()) == 2


def test_prompts_of_the_store_and_repeated_ones_are_not_sampled(empty: Store) -> None:
    empty.add_tasks([Task(prompt("Q0"), "A", "B")])
    live = LivePairs(empty, [prompt("Q0"), prompt("Q1"), prompt("Q1")], lambda p, seed: ("C", "D"))
    assert live.left == [prompt("Q1")]


def test_a_prompt_that_cannot_be_answered_is_skipped_and_a_failure_ends_the_sampling(empty: Store) -> None:
    def sample(p: Conversation, seed: int) -> tuple[str, str]:
        if p[-1].content == "long":
            raise DataError("too long")
        raise MemoryError("full")

    live = LivePairs(empty, [prompt("long"), prompt("Q")], sample)
    live.run()
    assert live.skipped == {"too long": 1}
    assert isinstance(live.failure, MemoryError)
    assert not live.waiting
