"""The campaign of `servers.py` for a few seconds, with a scorer that needs no model."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from policy.rewards import server as client_module
from policy.rollouts.servers import fleet as server_fleet
from reward.server import create_app
from rlhf.models.chat import Chat
from rlhf.web.serving import bind, make_server
from tests.campaigns import servers
from tests.campaigns.proxy import FAULTS, FaultyProxy


def reward_of(conversation: Any) -> float:
    """A number that another conversation hardly has."""
    return zlib.crc32("\n".join(message.content for message in conversation).encode()) / 2**20


class HashScorer:
    attributes = ("reward",)

    def score(self, conversations: Sequence[Any]) -> list[Any]:
        return [SimpleNamespace(reward=reward_of(item), attributes={}) for item in conversations]


@pytest.fixture
def port() -> Iterator[int]:
    """Of a reward server in this process."""
    bound = bind("127.0.0.1", 0)
    server = make_server(create_app(HashScorer(), model="hash", token=servers.TOKEN))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    yield bound.getsockname()[1]
    server.should_exit = True
    thread.join()


def test_64_clients_get_the_right_scores_in_spite_of_faults(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "RETRY_DELAYS", (0.01,) * 8)
    pool = [
        (prompt, rollout, reward_of((*prompt.messages, SimpleNamespace(content=rollout.text))))
        for prompt, rollout in servers.conversations(100)
    ]
    proxy = FaultyProxy(port, servers.RATES, slow=3)
    counts = servers.ask_for_rewards(proxy.port, pool, 4, timeout=2)
    proxy.close()
    assert not servers.faults_of(counts), counts
    assert counts["requests"] > 100 and counts["scores"] > 500
    assert counts["wrong token refused"] > 0
    assert sum(proxy.counts[fault] for fault in FAULTS) > 10


def test_a_wrong_score_is_counted(port: int) -> None:
    pool = [(prompt, rollout, -1.0) for prompt, rollout in servers.conversations(3)]
    counts = servers.ask_for_rewards(port, pool, 0.5, timeout=5, clients=2)
    assert counts["wrong scores"] == counts["scores"] > 0


def test_rollout_servers_lose_no_prompt_in_spite_of_faults(
    tmp_path: Path, tiny_chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_fleet, "PAUSES", (0.0, 0.02, 0.05))
    counts = servers.rollout_campaign(tmp_path, 4, tiny_chat, timeout=2, prompts=32)
    assert not servers.faults_of(counts), counts
    assert counts["answers"] >= 64 and counts["retried prompts"] > 0


def test_a_wrong_answer_is_counted(tiny_chat: Chat) -> None:
    groups = [[SimpleNamespace(completion_ids=(1,))]]
    counts = servers.compare_answers(groups, [[5]], 1)
    assert counts["wrong answers"] == 1 and counts["lost answers"] == 1
