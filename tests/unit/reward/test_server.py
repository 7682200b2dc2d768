"""The reward server, asked as any client would: a score for each conversation, a refusal for everything else."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from reward import server as module
from reward.scorer import Score
from reward.server import RewardServer
from rlhf.core.errors import DataError
from rlhf.core.records import Conversation

TOKEN = "a-token-of-the-test"


@dataclass
class PlusCounter:
    """Rewards the number of "+" in the last message; refuses long ones; knows whether two ask at once."""

    attributes: tuple[str, ...] = ("plus", "turns")
    slow: float = 0.0
    fails: bool = False
    busy: bool = False
    overlapped: bool = False
    threads: set[str] = field(default_factory=set)

    def score(self, conversations: Sequence[Conversation]) -> list[Score]:
        self.overlapped |= self.busy
        self.busy = True
        self.threads.add(threading.current_thread().name)
        time.sleep(self.slow)
        self.busy = False
        if self.fails:
            raise RuntimeError("the card is full\nand more")
        if any(len(one[-1].content) > 50 for one in conversations):
            raise DataError("it has 900 tokens.", allowed="at most 512")
        return [
            Score(float(one[-1].content.count("+")), {"plus": 1.0, "turns": float(len(one))})
            for one in conversations
        ]


@pytest.fixture
def server() -> Iterator[RewardServer]:
    with RewardServer(("127.0.0.1", 0), "some/model", TOKEN) as one:
        one.scorer = PlusCounter()
        one.server_activate()
        thread = threading.Thread(target=one.serve_forever, args=(0.05,))
        thread.start()
        yield one
        one.shutdown()
        thread.join()


Ask = Callable[..., tuple[int, Any]]


@pytest.fixture
def ask(server: RewardServer) -> Ask:
    def send(
        method: str, path: str, body: Any = None, *, token: str | None = TOKEN, **headers: str
    ) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        data = body if isinstance(body, bytes) or body is None else json.dumps(body)
        connection.request(method, path, data, headers)
        response = connection.getresponse()
        assert response.headers["Content-Type"].startswith(("application/json", "text/html"))
        said = response.read()
        connection.close()
        return response.status, json.loads(said) if said.startswith(b"{") else said

    return send


def asked(*answers: str) -> dict[str, Any]:
    return {
        "conversations": [
            [{"role": "user", "content": "Q"}, {"role": "assistant", "content": answer}] for answer in answers
        ]
    }


def test_a_score_for_each_conversation_in_its_order(ask: Ask) -> None:
    status, said = ask("POST", "/score", asked("+", "", "+++"))
    assert status == 200
    assert said == {
        "scores": [
            {"reward": reward, "attributes": {"plus": 1.0, "turns": 2.0}} for reward in (1.0, 0.0, 3.0)
        ]
    }
    assert ask("POST", "/score", {"conversations": []}) == (200, {"scores": []})


def test_a_conversation_that_cannot_be_scored_spoils_no_other(ask: Ask) -> None:
    body = asked("+", "x" * 51, "++")
    body["conversations"] += [
        "a string",
        [],
        [{"role": "user", "content": "no answer"}],
        [{"role": "judge", "content": "?"}],
        [{"role": "assistant", "content": "\ud83d"}],
        7,
    ]
    status, said = ask("POST", "/score", body)
    assert status == 200
    scores = said["scores"]
    assert [score.get("reward") for score in scores] == [1.0, None, 2.0] + [None] * 6
    errors = [score["error"] for score in scores if "error" in score]
    assert errors[0] == "it has 900 tokens. Allowed: at most 512"
    for error, place in zip(errors[1:4], (4, 5, 6), strict=True):
        assert error.startswith(f"conversation {place} does not end with the assistant's message")
    assert "conversation 7" in errors[4] and "judge" in errors[4]
    assert "Unicode" in errors[5] and "conversation 9" in errors[6]


def test_health_says_what_is_served(ask: Ask) -> None:
    status, said = ask("GET", "/health")
    assert (status, said["status"], said["model"]) == (200, "ok", "some/model")
    assert (said["protocol"], said["attributes"]) == (1, ["plus", "turns"])


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN + "x", TOKEN[:-1], "tokén"])
def test_nothing_is_told_without_the_token(ask: Ask, token: str | None) -> None:
    for request in (("GET", "/health"), ("POST", "/score", asked("+")), ("GET", "/no/such/place")):
        status, said = ask(*request, token=None if token is None else token.encode().decode("latin-1"))
        assert status == 401 and list(said) == ["error"] and "Bearer TOKEN" in said["error"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("GET", "/score", None, 404, "GET /score is not served; POST /score and GET /health are"),
        ("POST", "/scores", {}, 404, "POST /scores is not served"),
        ("POST", "/score", b"{", 400, "not JSON"),
        ("POST", "/score", b"[" * 100_000, 400, "not JSON"),
        ("POST", "/score", b"\xff", 400, "not JSON"),
        ("POST", "/score", [], 400, '{"conversations": [...]}'),
        ("POST", "/score", {"conversations": {}}, 400, '{"conversations": [...]}'),
        ("POST", "/score", {"conversations": [[]] * 257}, 413, "257 conversations; at most 256"),
    ],
)
def test_a_request_that_cannot_be_used(
    ask: Ask, method: str, path: str, body: Any, status: int, message: str
) -> None:
    found, said = ask(method, path, body)
    assert found == status and message in said["error"]


def test_a_body_that_is_too_large_is_not_read_whole(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    assert ask("POST", "/score", b" " * 1001)[0] == 413
    assert ask("POST", "/score", asked("+"))[0] == 200


def test_a_body_of_unknown_length_is_refused(ask: Ask) -> None:
    assert ask("POST", "/score", b"", **{"Transfer-Encoding": "chunked"})[0] == 411
    assert ask("POST", "/score", None, **{"Content-Length": "-5"})[0] == 411


def test_other_methods_are_refused(ask: Ask) -> None:
    assert ask("DELETE", "/score")[0] == 501


def test_one_call_at_a_time_in_one_thread(ask: Ask, server: RewardServer) -> None:
    scorer = PlusCounter(slow=0.05)
    server.scorer = scorer
    found: list[int] = []
    clients = [
        threading.Thread(target=lambda: found.append(ask("POST", "/score", asked("+"))[0])) for _ in range(5)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert found == [200] * 5
    assert not scorer.overlapped and len(scorer.threads) == 1


def test_a_model_that_fails_is_told_and_the_server_lives(ask: Ask, server: RewardServer) -> None:
    server.scorer = PlusCounter(fails=True)
    assert ask("POST", "/score", asked("+")) == (500, {"error": "the model failed: the card is full"})
    server.scorer = PlusCounter()
    assert ask("POST", "/score", asked("+"))[0] == 200


def test_a_client_that_goes_away_or_falls_silent_stops_nobody(
    ask: Ask, server: RewardServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module._Handler, "timeout", 0.2)
    lines = f"POST /score HTTP/1.0\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 100\r\n\r\n"
    silent, gone = (socket.create_connection(("127.0.0.1", server.server_port)) for _ in range(2))
    silent.sendall(lines.encode())
    gone.sendall(lines.encode())
    gone.close()
    assert ask("POST", "/score", asked("+"))[0] == 200
    silent.settimeout(5)
    assert silent.recv(10) == b""  # hung up on
    silent.close()
    assert "Traceback" not in capfd.readouterr().err
