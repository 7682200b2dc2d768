from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from policy.evaluation.held_out import Answer, answer_prompts, compare
from policy.rewards.model import ModelReward
from policy.rewards.protocol import RewardResult
from policy.rewards.weighted import WeightedRewards, WeightedTerm
from policy.rollouts.protocol import Sampling
from policy.rollouts.transformers_engine import TransformersEngine
from reward.scorer import Scorer
from rlhf.core.errors import RewardError
from rlhf.core.records import Message, Prompt
from rlhf.data.demo.dataset import demo_rows
from rlhf.models.chat import Chat
from rlhf.models.forwards import enable_packed_logprobs
from rlhf.models.loading import load_causal, lora_config, with_adapter
from rlhf.report.verdict import policy_verdict

PROMPTS = [Prompt((Message("user", f"Q{n}"),), source="here") for n in range(6)]


def answer(reward: float = 0.0, gold: float | None = 0.5, kl: float = 0.0, length: int = 4) -> Answer:
    return Answer("text", reward, gold, kl, length, finished=True)


def answers(rewards: list[list[float]]) -> list[list[Answer]]:
    return [[answer(reward) for reward in group] for group in rewards]


BEFORE = answers([[0.0, 1.0], [2.0, 4.0], [-1.0, 1.0], [5.0, 5.0], [0.5, 0.5], [3.0, 1.0]])


def shifted(by: float) -> list[list[Answer]]:
    return [[replace(item, reward=item.reward + by) for item in group] for group in BEFORE]


@pytest.mark.parametrize("by", [0.75, -0.75])
def test_a_constant_difference_is_certain_and_has_its_sign(by: float) -> None:
    """Prompts differ much from one another; what counts is the difference within each."""
    difference = compare(PROMPTS, BEFORE, shifted(by), seed=0)["difference"]["reward"]
    assert difference["mean"] == pytest.approx(by)
    assert difference["ci95"] == pytest.approx([by, by])


def test_a_single_prompt_has_no_interval_and_so_no_verdict() -> None:
    result = compare(PROMPTS[:1], BEFORE[:1], shifted(0.75)[:1], seed=0)
    assert result["difference"]["reward"] == {"mean": 0.75, "ci95": None}
    verdict = policy_verdict({**result, "after": result["after"] | {"gold": None}})
    assert (verdict.tone, verdict.label) == ("open", "No verdict")


def test_means_by_hand() -> None:
    result = compare(PROMPTS, BEFORE, shifted(1.0), seed=0)
    assert result["before"]["reward"] == pytest.approx((0.5 + 3.0 + 0.0 + 5.0 + 0.5 + 2.0) / 6)
    assert result["after"]["reward"] == pytest.approx(result["before"]["reward"] + 1)
    assert result["before"]["length"] == 4.0 and result["before"]["gold"] == 0.5
    assert (result["prompts"], result["samples"]) == (6, 2)


def test_the_interval_is_the_bootstrap_over_prompts() -> None:
    gains = [0.1, -0.4, 0.9, 0.3, 0.2, -0.1]
    after = [
        [replace(item, reward=item.reward + gain) for item in group]
        for group, gain in zip(BEFORE, gains, strict=True)
    ]
    difference = compare(PROMPTS, BEFORE, after, seed=0)["difference"]["reward"]
    assert difference["mean"] == pytest.approx(sum(gains) / 6)
    # All 6^6 ways to draw six prompts, each as likely as the others.
    means = [sum(draw) / 6 for draw in itertools.product(gains, repeat=6)]
    assert difference["ci95"] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.02)
    assert compare(PROMPTS, BEFORE, after, seed=0)["difference"]["reward"] == difference


def test_gold_where_answers_can_be_checked() -> None:
    mixed = [[answer(gold=None)] * 2, [answer(gold=0.25), answer(gold=0.75)]]
    better = [[answer(gold=None)] * 2, [answer(gold=1.0), answer(gold=1.0)]]
    result = compare(PROMPTS[:2], mixed, better, seed=0)
    assert (result["before"]["gold"], result["after"]["gold"]) == (0.5, 1.0)
    assert result["difference"]["gold"] == {"mean": 0.5, "ci95": None}  # of one prompt


def test_gold_where_none_can() -> None:
    result = compare(PROMPTS[:1], [[answer(gold=None)]], [[answer(gold=None)]], seed=0)
    assert (result["before"]["gold"], result["difference"]["gold"]) == (None, None)
    assert result["answers"][0]["before"]["gold"] is None


def test_the_shape_of_eval_json() -> None:
    result: dict[str, Any] = compare(PROMPTS, BEFORE, shifted(1.0), seed=0)
    figures = {"reward", "gold", "kl", "length"}
    assert set(result["before"]) == set(result["after"]) == set(result["difference"]) == figures
    assert len(result["answers"]) == 6
    assert result["answers"][1] == {
        "prompt": [{"role": "user", "content": "Q1"}],
        "source": "here",
        "check": None,
        "before": {
            "answer": "text", "reward": 2.0, "gold": 0.5, "kl": 0.0, "length": 4, "finished": True,
        },
        "after": {
            "answer": "text", "reward": 3.0, "gold": 0.5, "kl": 0.0, "length": 4, "finished": True,
        },
    }  # fmt: skip


@pytest.fixture
def model(tiny_base: Path) -> Any:
    """A policy that was trained with dropout, as it is left by the trainer: in training mode."""
    base = load_causal(str(tiny_base), revision=None, dtype="float32", quantization="none")
    enable_packed_logprobs(base, temperature=1.0)
    torch.manual_seed(0)
    wrapped = with_adapter(base, lora_config(rank=4, alpha=8, dropout=0.5, targets="all-linear"))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return wrapped.train()


def test_answers_are_measured_as_they_are(model: Any, tiny_chat: Chat, tiny_reward: Path) -> None:
    """Reward, gold score, KL and length of each answer, against what each means; without dropout."""
    engine = TransformersEngine(Sampling(8, 1.0, tiny_chat.stop_ids), tiny_chat)
    scorer = ModelReward(Scorer.share(tiny_reward, model, tiny_chat))
    rewards = WeightedRewards([WeightedTerm("adapter", 1.0, scorer)], "error")
    check = next(row["check"] for row in demo_rows("prompts", "train"))
    asked = [
        Prompt((Message("user", "Hi."),)),
        Prompt((Message("user", "Name a colour, please."),), check=check),
    ]
    groups = answer_prompts(
        model, model, engine, rewards, tiny_chat, asked, samples=2, seed=3, tokens_per_batch=64
    )
    assert model.training
    model.eval()
    rollouts = engine.generate([tiny_chat.prompt_ids(p.messages) for p in asked], samples=2, seed=3)
    values = Scorer.load(tiny_reward)
    for prompt, group, sampled in zip(asked, groups, rollouts, strict=True):
        for result, rollout in zip(group, sampled, strict=True):
            assert (result.answer, result.length) == (rollout.text, len(rollout.completion_ids))
            assert result.finished == rollout.finished
            (score,) = values.score([(*prompt.messages, Message("assistant", rollout.text))])
            assert result.reward == pytest.approx(score.reward, abs=1e-4)
            assert (result.gold is None) == (prompt.check is None)
            ids = torch.tensor([[*rollout.prompt_ids, *rollout.completion_ids]])
            start = len(rollout.prompt_ids) - 1
            with torch.no_grad():
                ours = torch.log_softmax(model(ids).logits[0], dim=-1)
                with model.disable_adapter():
                    reference = torch.log_softmax(model(ids).logits[0], dim=-1)
            ratio = (ours - reference)[torch.arange(start, ids.shape[1] - 1), ids[0, start + 1 :]]
            assert result.kl == pytest.approx(float(ratio.sum()), abs=1e-3)
            assert abs(result.kl) > 0.01


def test_a_held_out_reward_is_one_figure_more() -> None:
    first = [[replace(item, held_out=2.0) for item in group] for group in BEFORE]
    second = [[replace(item, held_out=1.5) for item in group] for group in shifted(1.0)]
    result = compare(PROMPTS, first, second, seed=0)
    assert (result["before"]["held_out"], result["after"]["held_out"]) == (2.0, 1.5)
    assert result["difference"]["held_out"] == {"mean": -0.5, "ci95": [-0.5, -0.5]}
    assert result["answers"][0]["after"]["held_out"] == 1.5
    assert "held_out" not in compare(PROMPTS, BEFORE, BEFORE, seed=0)["before"]


def test_an_answer_without_a_reward_is_in_no_mean() -> None:
    first = [[answer(1.0), replace(answer(), reward=None)], [answer(3.0), answer(5.0)]]
    second = [[answer(2.0), answer(4.0)], [replace(answer(), reward=None)] * 2]
    result = compare(PROMPTS[:2], first, second, seed=0)
    assert (result["before"]["reward"], result["after"]["reward"]) == ((1.0 + 4.0) / 2, 3.0)
    assert result["difference"]["reward"]["mean"] == 2.0  # of the prompt that has both
    assert result["missing"] == {"before": 1, "after": 2}


class Fixed:
    """Rewards that are given."""

    def __init__(self, *rewards: float) -> None:
        self.rewards = list(rewards)

    def of(self, prompts: Any, rollouts: Any) -> RewardResult:
        return RewardResult(self.rewards, missing={0: "it is ill"})


def test_rewards_that_are_missing_in_an_evaluation(
    model: Any, tiny_chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TransformersEngine(Sampling(3, 1.0, tiny_chat.stop_ids), tiny_chat)
    nan = float("nan")

    def ask(rewards: Fixed, held_out: Fixed | None = None) -> list[Answer]:
        settings: Any = {"samples": 2, "seed": 3, "tokens_per_batch": 64, "held_out": held_out}
        return answer_prompts(model, model, engine, rewards, tiny_chat, PROMPTS[:1], **settings)[0]

    assert [item.reward for item in ask(Fixed(nan, 2.0))] == [None, 2.0]
    assert [item.held_out for item in ask(Fixed(1.0, 2.0), Fixed(-1.0, nan))] == [-1.0, None]
    with pytest.raises(RewardError, match="it is ill"):
        ask(Fixed(nan, nan))
    # Where another rank's prompts have rewards, those of this one may have none.
    monkeypatch.setattr("policy.evaluation.held_out.processes.all_gather", lambda known: [known, True])
    assert [item.reward for item in ask(Fixed(nan, nan))] == [None, None]
