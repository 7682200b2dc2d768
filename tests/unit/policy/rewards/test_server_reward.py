"""The client of a reward server, against one that answers as a script says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from policy.rewards import server as module
from policy.rewards.protocol import Missing
from policy.rewards.server import ServerReward
from rlhf.core.errors import ConfigError, RewardError
from rlhf.core.records import Message, Prompt, Rollout

TOKEN = "a-token-of-the-test"
PROMPTS = [Prompt((Message("user", f"Q{n}"),)) for n in range(3)]
ROLLOUTS = [Rollout((1,), (5,), (), True, f"A{n}") for n in range(3)]
SCORES = {"scores": [{"reward": 1.5, "attributes": {}}, {"error": "too long"}, {"reward": -2}]}


class Scripted(HTTPServer):
    """Answers with one (status, body) after another, and keeps what it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[tuple[int, Any]] = []
        self.seen: list[tuple[str, str, Any]] = []


class Handler(BaseHTTPRequestHandler):
    server: Scripted

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        token = self.headers["Authorization"]
        self.server.seen.append((self.path, token, json.loads(body) if body else None))
        status, content = self.server.script.pop(0)
        if status == 0:
            return  # hangs up
        self.send_response(status)
        if status == 302:
            self.send_header("Location", content)
        self.end_headers()
        self.wfile.write(content.encode() if isinstance(content, str) else json.dumps(content).encode())

    do_GET = do_POST = _answer

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    monkeypatch.setenv("RLHF_REWARD_TOKEN", TOKEN)
    with Scripted() as item:
        thread = threading.Thread(target=item.serve_forever, args=(0.02,))
        thread.start()
        yield item
        item.shutdown()
        thread.join()


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waits: list[float] = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    return waits


def client(scripted: Scripted, timeout: float = 10.0) -> ServerReward:
    url = f"http://127.0.0.1:{scripted.server_port}/"
    return ServerReward(url, token_env="RLHF_REWARD_TOKEN", timeout=timeout)


def test_each_answer_gets_what_the_server_says_of_it(scripted: Scripted) -> None:
    scripted.script = [(200, SCORES)]
    assert client(scripted).of(PROMPTS, ROLLOUTS) == [1.5, Missing("too long"), -2.0]
    ((path, token, body),) = scripted.seen
    assert (path, token) == ("/score", f"Bearer {TOKEN}")
    assert body["conversations"][1] == [
        {"role": "user", "content": "Q1"},
        {"role": "assistant", "content": "A1"},
    ]


def test_many_answers_go_in_chunks(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 2)
    scripted.script = [(200, {"scores": [{"reward": 0}, {"reward": 1}]}), (200, {"scores": [{"reward": 2}]})]
    assert client(scripted).of(PROMPTS, ROLLOUTS) == [0.0, 1.0, 2.0]
    assert [len(body["conversations"]) for _, _, body in scripted.seen] == [2, 1]


@pytest.mark.parametrize("failure", [(503, "busy"), (0, ""), (200, "no JSON"), (200, [1])])
def test_what_may_pass_is_tried_again_with_growing_waits(
    scripted: Scripted, waited: list[float], failure: tuple[int, Any]
) -> None:
    scripted.script = [failure, failure, failure, (200, SCORES)]
    assert client(scripted).of(PROMPTS, ROLLOUTS)[0] == 1.5
    assert waited == [1.0, 2.0, 4.0]


def test_in_the_end_the_run_ends(scripted: Scripted, waited: list[float]) -> None:
    scripted.script = [(500, {"error": "the card is full"})] * 9
    with pytest.raises(RewardError, match="/score: .*500: the card is full") as caught:
        client(scripted).of(PROMPTS, ROLLOUTS)
    assert (waited, len(scripted.seen), caught.value.exit_code) == ([1.0, 2.0, 4.0, 8.0], 5, 1)
    assert "--resume" in caught.value.fix


def test_a_server_that_says_nothing_in_time(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_DELAYS", ())
    halt = threading.Event()
    monkeypatch.setattr(Handler, "do_POST", lambda self: halt.wait(5))
    reward = client(scripted, timeout=0.1)
    with pytest.raises(RewardError, match=r"0\.1") as caught:
        reward.of(PROMPTS, ROLLOUTS)
    assert "0.1" in caught.value.allowed
    halt.set()


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_token_is_an_error_at_once(scripted: Scripted, waited: list[float], status: int) -> None:
    scripted.script = [(status, {"error": "no"})]
    with pytest.raises(ConfigError, match="RLHF_REWARD_TOKEN") as caught:
        client(scripted).of(PROMPTS, ROLLOUTS)
    assert (waited, caught.value.exit_code) == ([], 2)
    assert TOKEN not in str(caught.value)


def test_no_token(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RLHF_REWARD_TOKEN")
    with pytest.raises(ConfigError, match="RLHF_REWARD_TOKEN") as caught:
        client(scripted).check()
    assert "export RLHF_REWARD_TOKEN=TOKEN" in caught.value.fix and not scripted.seen


@pytest.mark.parametrize("token", ["two words", "secret-line\n", "tokén"])
def test_a_token_that_no_header_can_hold_is_not_printed(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("RLHF_REWARD_TOKEN", token)
    with pytest.raises(ConfigError) as caught:
        client(scripted).check()
    assert "RLHF_REWARD_TOKEN" in caught.value.found and token.strip() not in str(caught.value)
    assert not scripted.seen


def test_any_text_can_be_sent(scripted: Scripted) -> None:
    """A lone surrogate, which UTF-8 cannot encode."""
    scripted.script = [(200, {"scores": [{"error": "not Unicode"}]})]
    assert client(scripted).of(PROMPTS[:1], [Rollout((1,), (5,), (), True, "\ud83d")]) == [
        Missing("not Unicode")
    ]
    assert scripted.seen[0][2]["conversations"][0][1]["content"] == "\ud83d"


def test_the_token_is_in_no_log_and_no_url(scripted: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    scripted.script = [(200, SCORES)]
    client(scripted).of(PROMPTS, ROLLOUTS)
    assert caplog.records and TOKEN not in caplog.text and TOKEN not in scripted.seen[0][0]


def test_a_redirection_is_not_followed_so_that_the_token_goes_nowhere_else(scripted: Scripted) -> None:
    scripted.script = [(302, f"http://127.0.0.1:{scripted.server_port}/elsewhere")]
    with pytest.raises(ConfigError, match="302"):
        client(scripted).check()
    assert [path for path, _, _ in scripted.seen] == ["/health"]


def test_no_server(scripted: Scripted) -> None:
    gone = ServerReward("http://127.0.0.1:9", token_env="RLHF_REWARD_TOKEN", timeout=1)
    with pytest.raises(ConfigError, match=r"http://127\.0\.0\.1:9 .*/health") as caught:
        gone.check()
    assert "rlhf serve-reward MODEL" in caught.value.fix


def test_a_server_of_another_kind(scripted: Scripted) -> None:
    scripted.script = [(200, {"status": "ok"}), (404, "<html>nothing here</html>"), (200, {"protocol": 1})]
    with pytest.raises(ConfigError, match="protocol"):
        client(scripted).check()
    with pytest.raises(ConfigError, match="404: <html>nothing here"):
        client(scripted).check()
    client(scripted).check()


@pytest.mark.parametrize(
    "scores", [None, [], [{"reward": 1.0}] * 2, {"0": 1.0}], ids=["none", "empty", "too few", "a mapping"]
)
def test_another_number_of_scores_than_answers(scripted: Scripted, scores: Any) -> None:
    scripted.script = [(200, {"scores": scores})]
    with pytest.raises(RewardError, match=r"\b(no|0|2) .*\b3 "):
        client(scripted).of(PROMPTS, ROLLOUTS)


@pytest.mark.parametrize("score", ["NaN", '"1.0"', "true", "null", "Infinity", "1" + "0" * 400])
def test_a_score_that_is_no_number_is_missing(scripted: Scripted, score: str) -> None:
    scripted.script = [(200, f'{{"scores": [{{"reward": {score}}}, {{"reward": 1}}, 3]}}')]
    first, second, third = client(scripted).of(PROMPTS, ROLLOUTS)
    assert isinstance(first, Missing) and second == 1.0 and isinstance(third, Missing)
    assert first.reason.startswith("the server sent ") and "in place of a score" in first.reason


def test_this_machine_is_asked_without_a_proxy(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    scripted.script = [(200, {"protocol": 1})]
    client(scripted).check()
