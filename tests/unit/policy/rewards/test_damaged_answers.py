"""Answers that a proxy or a dying server damaged: each client repeats or reports them."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest
from pydantic import ValidationError

import policy.rewards.server
import reward.judge.client
from policy.rewards.server import ServerReward
from policy.rollouts.servers.client import Server, ServerError
from reward.judge.client import JudgeClient
from rlhf.config.judge import JudgeConfig
from rlhf.config.rewards import RewardSource
from rlhf.core.errors import RewardError

Damaged = Callable[[httpx.Request], httpx.Response]
DAMAGED: dict[str, Damaged] = {
    "gzip that is none": lambda _: httpx.Response(200, headers={"content-encoding": "gzip"}, content=b"x"),
    "nested too deeply": lambda _: httpx.Response(200, content=b"[" * 100_000),
    "a number of 5,000 digits": lambda _: httpx.Response(200, content=b'{"scores": ' + b"1" * 5_000 + b"}"),
    "an error nested too deeply": lambda _: httpx.Response(500, content=b"[" * 100_000),
}


def http(damaged: Damaged) -> httpx.Client:
    return httpx.Client(base_url="http://127.0.0.1:9", transport=httpx.MockTransport(damaged))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    for module in (policy.rewards.server, reward.judge.client):
        monkeypatch.setattr(module.time, "sleep", waited.append)
    return waited


@pytest.mark.parametrize("kind", DAMAGED)
def test_each_client_reports_it(kind: str, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_REWARD_TOKEN", "token")
    rewards = ServerReward("http://127.0.0.1:9", token_env="RLHF_REWARD_TOKEN", timeout=1)
    rewards._http = http(DAMAGED[kind])
    with pytest.raises(RewardError, match="gave no answer"):
        rewards._request("POST", "/score", {})
    assert len(waits) == 4, "a temporary fault"
    judge = JudgeClient(JudgeConfig(url="http://127.0.0.1:9", model="m", retries=1))
    judge._http = http(DAMAGED[kind])
    with pytest.raises(RewardError, match="2 attempts"):
        judge.complete(["x"])
    rollouts = Server("http://127.0.0.1:9", token=None, timeout=1)
    rollouts._http = http(DAMAGED[kind])
    with pytest.raises(ServerError):
        rollouts.complete({})


@pytest.mark.parametrize(("header", "waited"), [("nan", 1.0), ("-5", 0.0), ("3", 3.0), ("soon", 1.0)])
def test_a_wait_that_a_server_asks_for(header: str, waited: float, waits: list[float]) -> None:
    judge = JudgeClient(JudgeConfig(url="http://127.0.0.1:9", model="m", retries=1))
    judge._http = http(lambda _: httpx.Response(503, headers={"Retry-After": header}, content=b"busy"))
    with pytest.raises(RewardError):
        judge.complete(["x"])
    assert waits == [waited]


def test_an_address_that_is_none() -> None:
    for make in (
        lambda: RewardSource(server="http://[::1"),
        lambda: JudgeConfig(url="http://[::1", model="m"),
    ):
        with pytest.raises(ValidationError, match="Invalid IPv6 URL"):
            make()
    assert json.loads(RewardSource(server="http://[::1]:8800").model_dump_json())["server"]
