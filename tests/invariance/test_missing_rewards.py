"""An answer without a reward might as well not have been sampled: loss, gradient and the reward's figures are
those of the others."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.core.records import Message, Rollout

PROMPTS = [(Message("user", f"Question {n}?"),) for n in range(3)]
REWARDS = [0.5, math.nan, -1.0, math.nan, 2.0, 1.0, math.nan, math.nan, math.nan]  # of the last prompt none
LOST = (1, 3, 6, 7, 8)
CUT_OFF = ((0, 1), (1, 2))  # one without a reward, one with


@pytest.fixture
def groups(tiny_chat: Any) -> list[list[Rollout]]:
    """Three prompts with three answers each, some of them cut off."""
    generator = random.Random(0)

    def answer(prompt: int, place: int) -> Rollout:
        ids = tuple(generator.randrange(10, 900) for _ in range(generator.randrange(2, 9)))
        prompt_ids = tuple(tiny_chat.prompt_ids(PROMPTS[prompt]))
        return Rollout(prompt_ids, ids, (), (prompt, place) not in CUT_OFF, "text")

    return [[answer(prompt, place) for place in range(3)] for prompt in range(3)]


def update(trainer: Any, answers: int) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Figures and gradients of one update."""
    trainer.training_step(trainer.model, [trainer.train_dataset[place] for place in range(answers)])
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad()
    return trainer.figures, gradients


@pytest.mark.parametrize(
    "algorithm",
    [
        "{unfinished: keep}",
        "{unfinished: drop}",
        "{compat: true}",
        "{unfinished: keep, kl: {estimator: k2, reduction: sum, placement: loss, coefficient: 0.5}}",
        "{name: rloo}",
        "{name: rloo, unfinished: penalty, unfinished_reward: -3}",
        "{name: ppo, epochs: 1}",
    ],
)
def test_an_answer_without_a_reward_takes_no_part(
    policy_trainer: Callable[..., Any], groups: list[list[Rollout]], algorithm: str
) -> None:
    words = [f"algorithm={algorithm}", "reward_shaping.missing=drop", "reward_shaping.normalise=batch"]
    with_them, gradients = update(policy_trainer(PROMPTS, groups, REWARDS, *words), 9)
    kept = [[groups[place // 3][place % 3] for place in places] for places in ((0, 2), (4, 5))]
    rewards = [reward for place, reward in enumerate(REWARDS) if place not in LOST]
    without, expected = update(policy_trainer(PROMPTS[:2], kept, rewards, *words), 4)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        close = (
            5e-6 * gradient.abs().max().item()
        )  # float32 sums in another order err by the size of what is summed
        assert torch.allclose(gradients[name], gradient, atol=close, rtol=1e-3), name
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1e-3
    for name in ("loss/policy", "reward/mean", "reward/std", "reward/shaped", "length/reward_correlation"):
        assert with_them[name] == pytest.approx(without[name], abs=1e-5), name
    assert (with_them["reward/missing"], without["reward/missing"]) == (5, 0)
