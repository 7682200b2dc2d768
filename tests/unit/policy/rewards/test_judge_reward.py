"""A judge as a source of rewards: groups, missing rewards, figures, and what is refused before a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from policy.rewards.judge import JudgeReward
from policy.rewards.precheck import check_sources
from policy.rewards.protocol import Missing
from policy.rewards.weighted import WeightedRewards, WeightedTerm
from reward.judge.client import Completion, JudgeClient
from rlhf.config.judge import JudgeConfig
from rlhf.config.policy import PolicyConfig
from rlhf.core.errors import ConfigError, RewardError
from rlhf.core.records import Message, Prompt, Rollout

PROMPTS = [Prompt((Message("user", text),)) for text in ("P", "Q")]
ANSWERS = ["a", "bb", "c", "bad"]
ROLLOUTS = [Rollout((1,), (5,), (), True, text) for text in ANSWERS]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Requests to a judge that scores by length, and writes nothing of use on `bad`."""
    requests: list[str] = []

    def complete(self: JudgeClient, sent: Sequence[str]) -> list[Completion]:
        requests.extend(sent)
        answers = [request.split("[Response]\n")[1].split("\n[End")[0] for request in sent]
        return [Completion("?" if answer == "bad" else f"\\boxed{{{len(answer)}}}") for answer in answers]

    monkeypatch.setattr(JudgeClient, "complete", complete)
    return requests


def reward(**settings: Any) -> JudgeReward:
    return JudgeReward(JudgeConfig(url="http://127.0.0.1:9", model="m", **settings), None)


def test_one_score_for_each_answer(shown: list[str]) -> None:
    source = reward()
    scores = source.of([PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]], ROLLOUTS)
    assert scores[:3] == [1.0, 2.0, 1.0]
    assert isinstance(scores[3], Missing)
    assert "'?'" in scores[3].reason
    assert ["user: P" in request for request in shown] == [True, True, False, False]
    assert source.figures()["judge/unparsed"] == 1


def test_an_unread_text_is_an_error_or_is_dropped(shown: list[str]) -> None:
    prompts = [PROMPTS[0]] * 4
    with pytest.raises(RewardError):
        WeightedRewards([WeightedTerm("judge", 1.0, reward())], "error").of(prompts, ROLLOUTS)
    result = WeightedRewards([WeightedTerm("judge", 2.0, reward())], "drop").of(prompts, ROLLOUTS)
    assert (result.rewards[:3], result.known) == ([2.0, 4.0, 2.0], [True, True, True, False])
    assert result.figures["judge/requests"] == 4


def test_a_pairwise_judge_needs_two_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(JudgeClient, "check", lambda self: None)
    judge = {"url": "http://127.0.0.1:9", "model": "m", "pairing": "circle"}
    config = {
        "output": tmp_path,
        "reward": {"judge": judge},
        "data": {"prompts": [{"path": "demo"}]},
        "evaluation": {"samples": 1},
    }
    with pytest.raises(ConfigError) as caught:
        check_sources(PolicyConfig.model_validate(config), None, [])
    assert caught.value.fix.startswith("evaluation.samples=2")
    check_sources(PolicyConfig.model_validate({**config, "evaluation": {"samples": 2}}), None, [])
