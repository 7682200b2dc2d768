"""A judge behind a real HTTP server: good, slow, broken, refusing, garbled, and biased by order."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from judge_server import Server, serving, shown

from reward.judge.client import JudgeClient
from reward.judge.judge import TOO_LONG, UNREAD, Judge, Responses
from rlhf.config.judge import JudgeConfig
from rlhf.core.errors import ConfigError, RewardError
from rlhf.core.records import Message

TOKEN = "a-token-of-the-test"
PROMPT = (Message("user", "What is tea?"),)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("RLHF_JUDGE_TOKEN", TOKEN)
    with serving() as running:
        yield running


def config(server: Server, **settings: Any) -> JudgeConfig:
    return JudgeConfig(url=server.url, model="judge", **{"retries": 2, **settings})


def by_length(content: str, number: int) -> str:
    """An unbiased judge: a longer response has a higher score."""
    lengths = [min(len(text), 5) for text in shown(content)]
    if len(lengths) == 1:
        return f"\\boxed{{{lengths[0]}}}"
    ranking = 1 if lengths[0] > lengths[1] else 6
    return f"Scores: \\boxed{{{lengths[0]}, {lengths[1]}}} Ranking: \\boxed{{{ranking}}}"


def test_single_responses_cost_and_cache(server: Server, tmp_path: Path) -> None:
    server.reply = by_length
    settings = config(server, dollars_per_million=(1.0, 10.0))
    groups = [Responses(PROMPT, ["a", "abc"]), Responses(PROMPT, ["abcd", "a"])]
    judged = Judge(settings, tmp_path / "cache.jsonl").judge(groups)
    assert judged.scores == [[1.0, 3.0], [4.0, 1.0]]
    assert judged.figures["judge/requests"] == 4
    assert judged.figures["judge/cached"] == 1, "the same request is sent once"
    assert judged.figures["judge/prompt_tokens"] == 30
    assert judged.figures["judge/dollars"] == pytest.approx((30 * 1 + 6 * 10) / 1e6)
    assert set(server.tokens) == {f"Bearer {TOKEN}"}
    assert TOKEN not in (tmp_path / "cache.jsonl").read_text()
    with (tmp_path / "cache.jsonl").open("a") as file:
        file.write('{"key": "torn')
    again = Judge(settings, tmp_path / "cache.jsonl").judge(groups)
    assert (again.scores, len(server.requests)) == (judged.scores, 3), "a second process asks nothing again"
    more = Responses(PROMPT, ["ab", "abcde"])
    Judge(settings, tmp_path / "cache.jsonl").judge([more])
    last = Judge(settings, tmp_path / "cache.jsonl").judge([more])
    assert (last.scores, len(server.requests)) == ([[2.0, 5.0]], 5), "the torn line spoils no later one"


def test_what_arrived_before_a_failure_is_kept(server: Server, tmp_path: Path) -> None:
    """The first request fails; the others, which were sent at the same time, are not paid for again."""

    def reply(content: str, number: int) -> Any:
        time.sleep(0.3 if "[Response]\nbad" in content else 0)
        return (500, {}) if "[Response]\nbad" in content else "\\boxed{2}"

    server.reply = reply
    answers = [Responses(PROMPT, ["bad", "a", "b", "c"])]
    settings = config(server, retries=0, concurrency=4)
    with pytest.raises(RewardError):
        Judge(settings, tmp_path / "cache.jsonl").judge(answers)
    server.reply = lambda content, number: "\\boxed{4}"
    again = Judge(settings, tmp_path / "cache.jsonl").judge(answers)
    assert again.scores == [[4.0, 2.0, 2.0, 2.0]]


def test_any_text_can_be_sent(server: Server) -> None:
    """Half of a surrogate pair, as a row of JSON may have it, cannot be encoded as UTF-8."""
    server.reply = lambda content, number: "\\boxed{3}"
    assert Judge(config(server)).judge([Responses(PROMPT, ["half \ud83d"])]).scores == [[3.0]]
    (request,) = server.requests
    assert "half \\ud83d" in repr(request)


@pytest.mark.parametrize("pairing", ["circle", "all"])
def test_pairs_in_both_orders(server: Server, pairing: str) -> None:
    server.reply = by_length
    judged = Judge(config(server, pairing=pairing)).judge([Responses(PROMPT, ["a", "abc", "abcde"])])
    assert judged.scores == [[1.0, 3.0, 5.0]]
    assert (judged.figures["judge/position_bias"], judged.figures["judge/order_agreement"]) == (0.0, 1.0)


def test_a_judge_that_prefers_the_first_place_is_seen(server: Server) -> None:
    server.reply = lambda content, number: "\\boxed{5, 1} \\boxed{1}"
    judged = Judge(config(server, pairing="all")).judge([Responses(PROMPT, ["a", "b"])])
    assert judged.scores == [[3.0, 3.0]], "both orders cancel the bias"
    assert (judged.figures["judge/position_bias"], judged.figures["judge/order_agreement"]) == (4.0, 0.0)


def test_criteria_are_asked_one_by_one(server: Server) -> None:
    server.reply = lambda content, number: "Yes" if "is short" in content else "No"
    settings = config(server, form="yes-no", criteria=["It is short.", "It rhymes."])
    assert Judge(settings).judge([Responses(PROMPT, ["a"])]).scores == [[0.5]]
    assert len(server.requests) == 2


def test_garbled_text_is_no_score(server: Server) -> None:
    server.reply = lambda content, number: "I like it" if "[Response]\nbad" in content else "\\boxed{2}"
    judged = Judge(config(server)).judge([Responses(PROMPT, ["good", "bad"])])
    assert judged.scores == [[2.0, None]]
    assert judged.figures["judge/unparsed"] == 1
    ((good, bad),) = judged.failures
    assert good is None and bad is not None
    assert (bad.reason, "'I like it'" in bad.found, "judge.max_tokens" in bad.fix) == (UNREAD, True, True)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>busy</html>",
        b"",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"choices": []}',
        b'{"choices": [{"text": "\\\\boxed{3}"}]}',
        b'{"choices": [{"message": {"content": ["\\\\boxed{3}"]}}]}',
    ],
)
def test_a_response_that_is_no_completion_is_asked_for_again_and_then_ends_the_run(
    server: Server, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    monkeypatch.setattr("reward.judge.client.time.sleep", lambda seconds: None)
    server.reply = lambda content, number: body if number == 1 else "\\boxed{3}"
    assert Judge(config(server)).judge([Responses(PROMPT, ["a"])]).scores == [[3.0]]
    server.reply = lambda content, number: body
    with pytest.raises(RewardError) as caught:
        Judge(config(server)).judge([Responses(PROMPT, ["b"])])
    assert (len(server.requests), TOKEN in str(caught.value)) == (2 + 3, False)
    assert "choices[0].message.content" in caught.value.allowed


@pytest.mark.parametrize("usage", ["null", "7", "[]", '{"prompt_tokens": "many", "completion_tokens": null}'])
def test_a_server_that_counts_no_tokens_is_read(server: Server, usage: str) -> None:
    text = f'{{"choices": [{{"message": {{"content": "\\\\boxed{{4}}"}}}}], "usage": {usage}}}'
    server.reply = lambda content, number: text.encode()
    judged = Judge(config(server)).judge([Responses(PROMPT, ["a"])])
    assert (judged.scores, judged.figures["judge/prompt_tokens"]) == ([[4.0]], 0)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "This model's maximum context length is 64 tokens. However, you requested 99 tokens."),
        (400, {"message": "The decoder prompt is longer than the maximum model length of 64."}),
        (400, {"message": "no", "code": "context_length_exceeded"}),
        (400, "the request exceeds the available context size"),
        (413, "prompt is too long"),
    ],
)
def test_a_response_too_long_for_the_server_is_no_score_and_the_others_have_theirs(
    server: Server, tmp_path: Path, status: int, message: Any
) -> None:
    server.reply = lambda content, number: (status, {}, message) if "long" in content else "\\boxed{2}"
    judge = Judge(config(server), tmp_path / "cache.jsonl")
    judged = judge.judge([Responses(PROMPT, ["good", "long", "long"])])
    assert judged.scores == [[2.0, None, None]]
    assert [failure and failure.reason for failure in judged.failures[0]] == [None, TOO_LONG, TOO_LONG]
    # With a longer context the server is asked again, and for nothing else.
    server.reply = lambda content, number: "\\boxed{5}"
    again = Judge(config(server), tmp_path / "cache.jsonl").judge([Responses(PROMPT, ["good", "long"])])
    assert (again.scores, len(server.requests)) == ([[2.0, 5.0]], 3)


@pytest.mark.parametrize("pairing", ["single", "all"])
def test_the_rule_of_reasoning(server: Server, pairing: str) -> None:
    responses = Responses(PROMPT, ["<think>why</think>abc", "a"])
    server.reply = by_length
    judged = Judge(config(server, pairing=pairing, reasoning="strip")).judge([responses])
    assert judged.scores == [[3.0, 1.0]]
    assert not any("why" in request for request in server.requests)
    refused = Judge(config(server, pairing=pairing, reasoning="refuse")).judge([responses])
    thought, other = refused.failures[0]
    assert thought is not None and "reasoning: refuse" in thought.reason
    assert refused.scores == [[None, None if pairing == "all" else 1.0]]
    assert other == (thought if pairing == "all" else None), "nothing is left to compare it with"
    assert (refused.figures["judge/unparsed"], judged.failures) == (0, [[None, None]])
    Judge(config(server, pairing=pairing)).judge([responses])
    assert any("<think>why</think>" in request for request in server.requests)


def test_reasoning_that_used_up_the_tokens_is_no_score(server: Server) -> None:
    # With a reasoning parser, vLLM sends `content: null` where max_tokens ended the reasoning.
    server.reply = lambda content, number: None if "[Response]\nbad" in content else "\\boxed{2}"
    judged = Judge(config(server)).judge([Responses(PROMPT, ["good", "bad"])])
    assert judged.scores == [[2.0, None]]
    assert judged.figures["judge/unparsed"] == 1


def test_busy_and_broken_servers_are_asked_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("reward.judge.client.time.sleep", waits.append)
    replies: list[Any] = [(429, {"Retry-After": "7"}), (503, {}), "\\boxed{3}"]
    server.reply = lambda content, number: replies[number - 1]
    assert Judge(config(server)).judge([Responses(PROMPT, ["a"])]).scores == [[3.0]]
    assert waits == [7.0, 2.0]


@pytest.mark.parametrize("status", [429, 500])
def test_a_server_that_stays_broken_ends_the_run(
    server: Server, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr("reward.judge.client.time.sleep", lambda seconds: None)
    server.reply = lambda content, number: (status, {})
    with pytest.raises(RewardError) as caught:
        Judge(config(server)).judge([Responses(PROMPT, ["a"])])
    assert (len(server.requests), str(status) in caught.value.found) == (3, True)
    assert TOKEN not in str(caught.value)


def test_a_time_out(server: Server) -> None:
    def slow(content: str, number: int) -> str:
        time.sleep(0.5)
        return "\\boxed{3}"

    server.reply = slow
    with pytest.raises(RewardError):
        Judge(config(server, timeout=0.1, retries=0)).judge([Responses(PROMPT, ["a"])])


@pytest.mark.parametrize("status", [401, 403, 404, 400])
def test_refusals_are_not_repeated(server: Server, status: int) -> None:
    server.reply = lambda content, number: (status, {})
    with pytest.raises(ConfigError):
        Judge(config(server)).judge([Responses(PROMPT, ["a"])])
    assert len(server.requests) == 1


def test_further_fields_are_sent_and_are_part_of_the_cached_request(server: Server, tmp_path: Path) -> None:
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    for extra_body in (off, off, {}):
        settings = config(server, extra_body=extra_body)
        Judge(settings, tmp_path / "cache.jsonl").judge([Responses(PROMPT, ["a"])])
    with_it, without = server.bodies
    assert with_it == {**without, **off} and "chat_template_kwargs" not in without


def test_requests_run_at_once(server: Server) -> None:
    def slow(content: str, number: int) -> str:
        time.sleep(0.05)
        return "\\boxed{3}"

    server.reply = slow
    Judge(config(server, concurrency=4)).judge([Responses(PROMPT, [str(n) for n in range(12)])])
    assert 2 <= server.busiest <= 4


def test_a_server_that_lists_no_models_gets_a_request(server: Server) -> None:
    server.models = (404, {"error": "no such path"})
    JudgeClient(config(server)).check()
    assert len(server.requests) == 1
    server.reply = lambda content, number: (404, {})
    with pytest.raises(ConfigError):
        JudgeClient(config(server)).check()
    server.models = (401, {})
    with pytest.raises(ConfigError) as caught:
        JudgeClient(config(server)).check()
    assert "RLHF_JUDGE_TOKEN" in caught.value.fix


def test_a_check_before_the_run(server: Server) -> None:
    JudgeClient(config(server)).check()
    with pytest.raises(ConfigError) as caught:
        JudgeClient(JudgeConfig(url=server.url, model="judgee")).check()
    assert "judge.model=judge" in caught.value.fix
    with pytest.raises(ConfigError):
        JudgeClient(JudgeConfig(url="http://127.0.0.1:9", model="judge")).check()


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "127.0.0.1:8000"},
        {"url": "http://h/v1"},
        {"form": "rubric"},
        {"form": "yes-no", "criteria": ["x"], "pairing": "all"},
        {"criteria": [" "]},
        {"max_tokens": 0},
        {"extra_body": {"stream": True}},
        {"extra_body": {"API_KEY": "sk-1234"}},
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        JudgeConfig(**{"url": "http://h", "model": "m", **settings})
