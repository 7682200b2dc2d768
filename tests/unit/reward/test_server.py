"""The reward server over real sockets: scores, errors of bad requests, batches, graceful stop."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from reward import server as module
from reward.scorer import Score
from reward.server import BatchQueue, create_app
from rlhf.core.errors import DataError
from rlhf.core.records import Conversation
from rlhf.web.serving import BACKLOG, bind, make_server

TOKEN = "a-token-of-the-test"


@dataclass
class PlusCounter:
    """Rewards the number of "+" in the last message; refuses long ones; records the size of each call."""

    attributes: tuple[str, ...] = ("plus", "turns")
    slow: float = 0.0
    error: Exception | None = None
    busy: bool = False
    overlapped: bool = False
    sizes: list[int] = field(default_factory=list)

    def score(self, conversations: Sequence[Conversation]) -> list[Score]:
        self.overlapped |= self.busy
        self.busy = True
        self.sizes.append(len(conversations))
        time.sleep(self.slow)
        self.busy = False
        if self.error is not None:
            raise self.error
        if any(len(conversation[-1].content) > 50 for conversation in conversations):
            raise DataError("it has 900 tokens.", allowed="at most 512")
        return [
            Score(
                float(conversation[-1].content.count("+")), {"plus": 1.0, "turns": float(len(conversation))}
            )
            for conversation in conversations
        ]


@dataclass
class Served:
    """A running server."""

    queue: BatchQueue
    port: int
    server: uvicorn.Server
    thread: threading.Thread


@pytest.fixture
def served() -> Iterator[Served]:
    app = create_app(PlusCounter(), model="some/model", token=TOKEN)
    with bind("127.0.0.1", 0) as bound:
        bound.listen(BACKLOG)
        server = make_server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        yield Served(app.state.queue, bound.getsockname()[1], server, thread)
        server.should_exit = True
        thread.join()


Ask = Callable[..., tuple[int, Any]]


@pytest.fixture
def ask(served: Served) -> Ask:
    def send(
        method: str, path: str, body: Any = None, *, token: str | None = TOKEN, **headers: str
    ) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        data = body if isinstance(body, bytes) or body is None else json.dumps(body)
        connection.request(method, path, data, headers)
        response = connection.getresponse()
        assert response.headers["Content-Type"] == "application/json"
        content = json.loads(response.read())
        connection.close()
        return response.status, content

    return send


def conversations(*answers: str) -> dict[str, Any]:
    return {
        "conversations": [
            [{"role": "user", "content": "Q"}, {"role": "assistant", "content": answer}] for answer in answers
        ]
    }


def test_a_score_for_each_conversation_in_its_order(ask: Ask) -> None:
    status, content = ask("POST", "/score", conversations("+", "", "+++"))
    assert status == 200
    assert content == {
        "scores": [
            {"reward": reward, "attributes": {"plus": 1.0, "turns": 2.0}} for reward in (1.0, 0.0, 3.0)
        ]
    }
    assert ask("POST", "/score", {"conversations": []}) == (200, {"scores": []})


def test_an_invalid_conversation_does_not_affect_the_others(ask: Ask) -> None:
    body = conversations("+", "x" * 51, "++")
    body["conversations"] += [
        "a string",
        [],
        [{"role": "user", "content": "no answer"}],
        [{"role": "judge", "content": "?"}],
        [{"role": "assistant", "content": "\ud83d"}],
        7,
    ]
    status, content = ask("POST", "/score", body)
    assert status == 200
    scores = content["scores"]
    assert [score.get("reward") for score in scores] == [1.0, None, 2.0] + [None] * 6
    errors = [score["error"] for score in scores if "error" in score]
    assert "900 tokens" in errors[0] and "512" in errors[0]
    for error, place in zip(errors[1:4], (4, 5, 6), strict=True):
        assert error.startswith(f"conversation {place} ") and "assistant" in error
    assert "conversation 7" in errors[4] and "judge" in errors[4]
    assert "Unicode" in errors[5] and "conversation 9" in errors[6]


def test_health_describes_the_model(ask: Ask) -> None:
    status, content = ask("GET", "/health")
    assert (status, content["status"], content["model"]) == (200, "ok", "some/model")
    assert (content["protocol"], content["attributes"]) == (1, ["plus", "turns"])


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN + "x", TOKEN[:-1], "tokén"])
def test_every_path_needs_the_token(ask: Ask, token: str | None) -> None:
    for request in (("GET", "/health"), ("POST", "/score", conversations("+")), ("GET", "/no/such/place")):
        status, content = ask(*request, token=None if token is None else token.encode().decode("latin-1"))
        assert status == 401 and list(content) == ["error"] and "Bearer TOKEN" in content["error"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("GET", "/score", None, 405, "GET /score is not served; POST /score and GET /health are"),
        ("POST", "/scores", {}, 404, "POST /scores is not served"),
        ("POST", "/score/", {}, 404, "POST /score/ is not served"),
        ("DELETE", "/score", None, 405, "DELETE /score is not served"),
        ("POST", "/score", b"{", 400, "not JSON"),
        ("POST", "/score", b"[" * 100_000, 400, "not JSON"),
        ("POST", "/score", b"\xff", 400, "not JSON"),
        ("POST", "/score", [], 400, '{"conversations": [...]}'),
        ("POST", "/score", {"conversations": {}}, 400, '{"conversations": [...]}'),
        ("POST", "/score", {"conversations": [[]] * 257}, 413, "257 conversations; at most 256"),
    ],
)
def test_an_invalid_request(ask: Ask, method: str, path: str, body: Any, status: int, message: str) -> None:
    result, content = ask(method, path, body)
    assert result == status and message in content["error"]


def test_a_body_beyond_the_limit(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    assert ask("POST", "/score", b" " * 1001)[0] == 413
    chunked = (b" " * 600 for _ in range(2))  # no Content-Length
    connection = {"Transfer-Encoding": "chunked"}
    assert ask("POST", "/score", b"".join(_chunks(chunked)), **connection)[0] == 413
    assert ask("POST", "/score", conversations("+"))[0] == 200


def _chunks(parts: Iterator[bytes]) -> Iterator[bytes]:
    for part in parts:
        yield b"%x\r\n%s\r\n" % (len(part), part)
    yield b"0\r\n\r\n"


@pytest.mark.parametrize("token", [TOKEN, "wrong"])
def test_a_client_that_sends_too_much_gets_an_answer_and_not_a_reset(ask: Ask, token: str) -> None:
    status, content = ask("POST", "/score", b" " * (module.MAX_BYTES + 1), token=token)
    assert status == (413 if token == TOKEN else 401) and list(content) == ["error"]


def test_a_chunked_body_is_read(ask: Ask) -> None:
    body = json.dumps(conversations("+++")).encode()
    status, content = ask(
        "POST", "/score", b"".join(_chunks(iter([body[:20], body[20:]]))), **{"Transfer-Encoding": "chunked"}
    )
    assert (status, content["scores"][0]["reward"]) == (200, 3.0)


def test_requests_that_wait_are_scored_in_one_batch(
    ask: Ask, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_CONVERSATIONS", 10)
    scorer = PlusCounter(slow=0.2)
    served.queue.scorer = scorer
    with ThreadPoolExecutor(13) as clients:
        # One request occupies the model; twelve of two conversations wait meanwhile.
        calls = [clients.submit(ask, "POST", "/score", conversations("+"))]
        while not scorer.busy:
            time.sleep(0.005)
        calls += [
            clients.submit(ask, "POST", "/score", conversations("+" * n, "+" * (n + 1))) for n in range(12)
        ]
        answers = [call.result() for call in calls]
    assert [status for status, _ in answers] == [200] * 13
    assert [[score["reward"] for score in content["scores"]] for _, content in answers[1:]] == [
        [n, n + 1] for n in range(12)
    ]
    assert not scorer.overlapped and sum(scorer.sizes) == 25
    assert max(scorer.sizes) <= 10 and len(scorer.sizes) <= 5  # at least two of them in one call


def test_an_invalid_conversation_does_not_affect_other_requests_of_its_batch(
    ask: Ask, served: Served
) -> None:
    scorer = PlusCounter(slow=0.1)
    served.queue.scorer = scorer
    with ThreadPoolExecutor(4) as clients:
        texts = ["+", "x" * 51, "++", "+++"]
        answers = list(clients.map(lambda text: ask("POST", "/score", conversations(text)), texts))
    assert [content["scores"][0].get("reward") for _, content in answers] == [1.0, None, 2.0, 3.0]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("out of memory\nand more"), "the model failed: out of memory"),
        (ValueError("a private text"), "the server failed: ValueError"),
    ],
)
def test_a_failing_model_is_reported_and_the_server_keeps_running(
    ask: Ask, served: Served, error: Exception, message: str
) -> None:
    served.queue.scorer = PlusCounter(error=error)
    assert ask("POST", "/score", conversations("+")) == (500, {"error": message})
    served.queue.scorer = PlusCounter()
    assert ask("POST", "/score", conversations("+"))[0] == 200


def test_a_client_that_disconnects_or_falls_silent_stops_nobody(
    ask: Ask, served: Served, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "READ_SECONDS", 0.2)
    lines = f"POST /score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 100\r\n\r\n"
    silent, gone = (socket.create_connection(("127.0.0.1", served.port)) for _ in range(2))
    silent.sendall(lines.encode())
    gone.sendall(lines.encode())
    gone.close()
    assert ask("POST", "/score", conversations("+"))[0] == 200
    silent.settimeout(5)
    assert silent.recv(100).startswith(b"HTTP/1.1 408")
    while silent.recv(1000):  # until the server closes the connection
        pass
    silent.close()
    assert "Traceback" not in capfd.readouterr().err


def _load(ask: Ask, served: Served, seconds: float) -> int:
    """64 clients that ask without a pause; returns how many requests were answered, all of them correctly."""
    scorer = PlusCounter(slow=0.01)
    served.queue.scorer = scorer
    end = time.monotonic() + seconds

    def client(number: int) -> int:
        answered = 0
        while time.monotonic() < end:
            status, content = ask("POST", "/score", conversations("+" * (number % 40)))
            assert status == 200 and content["scores"][0]["reward"] == number % 40
            answered += 1
        return answered

    with ThreadPoolExecutor(64) as clients:
        answered = list(clients.map(client, range(64)))
    assert min(answered) >= 1 and not scorer.overlapped
    assert sum(scorer.sizes) == sum(answered) and len(scorer.sizes) < sum(answered) / 2  # they share calls
    return sum(answered)


def test_64_clients_at_once(ask: Ask, served: Served) -> None:
    assert _load(ask, served, 1.5) >= 64


@pytest.mark.slow
def test_64_clients_for_a_minute(ask: Ask, served: Served) -> None:
    assert _load(ask, served, 60) > 1280


def test_a_stopping_server_answers_the_requests_under_way(ask: Ask, served: Served) -> None:
    scorer = PlusCounter(slow=0.4)
    served.queue.scorer = scorer
    with ThreadPoolExecutor(3) as clients:
        first = clients.submit(ask, "POST", "/score", conversations("+"))
        while not scorer.busy:
            time.sleep(0.005)
        waiting = [clients.submit(ask, "POST", "/score", conversations("++")) for _ in range(2)]
        while len(served.queue) < 2:
            time.sleep(0.005)
        served.server.should_exit = True  # what a signal sets
        answers = [call.result() for call in (first, *waiting)]
    served.thread.join(10)
    assert not served.thread.is_alive()
    assert [(status, content["scores"][0]["reward"]) for status, content in answers] == [
        (200, 1.0), (200, 2.0), (200, 2.0),
    ]  # fmt: skip


SERVE = """
import sys, time
from pathlib import Path
from reward.scorer import Score
from reward.server import create_app
from rlhf.web.serving import bind, serve

class Slow:
    attributes = ("reward",)
    def score(self, conversations):
        Path(sys.argv[1]).touch()
        time.sleep(2)
        return [Score(1.0, {}) for _ in conversations]

bound = bind("127.0.0.1", 0)
bound.listen()
print(bound.getsockname()[1], flush=True)
serve(create_app(Slow(), model="slow", token="a-token-of-the-test"), bound)
print("Stopped.")
"""


@pytest.mark.slow
def test_sigterm_answers_the_requests_under_way(tmp_path: Path) -> None:
    busy = tmp_path / "busy"
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(busy)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    port = int(process.stdout.readline())

    def ask_once() -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request(
            "POST", "/score", json.dumps(conversations("+")), {"Authorization": f"Bearer {TOKEN}"}
        )
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    with ThreadPoolExecutor(3) as clients:
        first = clients.submit(ask_once)
        while not busy.exists():
            time.sleep(0.01)
        waiting = [clients.submit(ask_once) for _ in range(2)]  # queued behind the first
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        answers = [call.result() for call in (first, *waiting)]
    expected = {"scores": [{"reward": 1.0, "attributes": {}}]}
    assert answers == [(200, expected)] * 3
    assert process.wait(20) == 0
    assert process.stdout.read() == "Stopped.\n"
