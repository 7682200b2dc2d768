"""The chat page's server, with a speaker that answers from a script."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from rlhf.commands.chat_page import _keeper
from rlhf.core.errors import DataError
from rlhf.core.records import Conversation
from rlhf.web.chat import Answer, build_app

TOKEN = "a-token-of-the-test"


class Scripted:
    names = ("policy", "base")

    def __init__(self) -> None:
        self.seen: list[tuple[str, Conversation, int]] = []

    def answer(
        self, name: str, conversation: Conversation, seed: int, on_text: Callable[[str], None]
    ) -> Answer:
        self.seen.append((name, conversation, seed))
        if conversation[-1].content == "too long":
            raise DataError("The conversation is too long.")
        for piece in ("Hi ", f"from {name}"):
            on_text(piece)
        return Answer(f"Hi from {name}", True, 1.5, {"helpfulness": 1.5})


def client_of(speaker: Scripted, keep: Callable[[Conversation, str, str], bool] | None = None) -> TestClient:
    client = TestClient(build_app(speaker, TOKEN, keep))
    assert client.post("/api/session", json={"token": TOKEN}).json()["names"] == ["policy", "base"]
    return client


def question(text: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text}], "seed": 3}


def test_answers_are_streamed_one_model_after_another() -> None:
    speaker = Scripted()
    lines = client_of(speaker).post("/api/answer", json=question("Hello")).text.splitlines()
    read = [json.loads(line) for line in lines]
    assert [line.get("piece") for line in read] == ["Hi ", "from policy", None, "Hi ", "from base", None]
    assert read[2] == {
        "name": "policy",
        "text": "Hi from policy",
        "finished": True,
        "reward": 1.5,
        "attributes": {"helpfulness": 1.5},
    }
    assert [(name, seed) for name, _, seed in speaker.seen] == [("policy", 3), ("base", 3)]


def test_a_failure_is_a_line_of_the_answer() -> None:
    (line,) = client_of(Scripted()).post("/api/answer", json=question("too long")).text.splitlines()
    assert json.loads(line) == {"error": "The conversation is too long."}


def test_strangers_and_wrong_turns_are_refused() -> None:
    client = TestClient(build_app(Scripted(), TOKEN))
    assert client.post("/api/answer", json=question("Hello")).status_code == 401
    assert client.get("/api/session").status_code == 401
    assert client.post("/api/session", json={"token": "guess"}).status_code == 401
    client = client_of(Scripted())
    waits = {"messages": [{"role": "assistant", "content": "x"}]}
    assert client.post("/api/answer", json=waits).status_code == 422
    assert (
        client.post("/api/answer", json={"messages": [{"role": "system", "content": "x"}]}).status_code == 422
    )
    assert client.post("/api/answer", content="{}", headers={"Content-Type": "text/plain"}).status_code == 415


def test_two_chats_on_one_host_keep_their_sessions() -> None:
    """Browsers send the cookies of all ports of a host to each of them."""
    first, second = client_of(Scripted()), client_of(Scripted())
    second.cookies.update(first.cookies)
    assert len(second.cookies) == 2
    assert second.get("/api/session").status_code == 200


def test_a_pair_is_kept_once() -> None:
    kept: set[tuple[Conversation, str, str]] = set()

    def keep(prompt: Conversation, first: str, second: str) -> bool:
        new = (prompt, first, second) not in kept
        kept.add((prompt, first, second))
        return new

    client = client_of(Scripted(), keep)
    pair = {**question("Hello"), "first": "a", "second": "b"}
    pair.pop("seed")
    assert [client.post("/api/pairs", json=pair).json()["new"] for _ in range(2)] == [True, False]
    assert client_of(Scripted()).post("/api/pairs", json=pair).status_code == 404


def test_a_pair_that_nobody_can_annotate_is_refused(tmp_path: Path) -> None:
    client = client_of(Scripted(), _keeper(str(tmp_path / "a.db")))
    turns = [{"role": "user", "content": "Q"}]
    for first, second, status in (("", "b", 422), ("same", "same", 422), ("a", "b", 200)):
        sent = client.post("/api/pairs", json={"messages": turns, "first": first, "second": second})
        assert sent.status_code == status, sent.text


@pytest.mark.parametrize("path", ["/", "/chat.js", "/chat.css"])
def test_files_are_packaged(path: str) -> None:
    answer = client_of(Scripted()).get(path)
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"].startswith("default-src 'self'")
