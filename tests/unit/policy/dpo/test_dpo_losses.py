"""The DPO losses against values derived by hand."""

from __future__ import annotations

import math

import pytest
import torch

from policy.dpo.losses import dpo, implicit_rewards
from reward.losses import PreferenceLoss

BETA = 0.5
# Two pairs: log-ratios +2 and -1 (D = 3, strength 1), then 0.4 and 1.6 (D = -1.2, strength 3).
REWARDS = [BETA * 2.0, BETA * -1.0, BETA * 0.4, BETA * 1.6]
STRENGTH = torch.tensor([1.0, 3.0])


def softplus(x: float) -> float:
    """-log sigmoid(-x)."""
    return math.log1p(math.exp(x))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("regular", (softplus(-1.5) + softplus(0.6)) / 2),
        ("margin", (softplus(-1.5 + 1) + softplus(0.6 + 3)) / 2),
        ("scaled", (1 * softplus(-1.5) + 3 * softplus(0.6)) / 2),
    ],
)
def test_the_three_losses(kind: PreferenceLoss, expected: float) -> None:
    rewards = torch.tensor(REWARDS)
    assert dpo(rewards, STRENGTH, kind, 2).item() == pytest.approx(expected, abs=1e-6)
    flipped = torch.tensor([REWARDS[1], REWARDS[0], REWARDS[3], REWARDS[2]])
    assert dpo(flipped, STRENGTH, kind, 2).item() != pytest.approx(expected, abs=1e-2)


@pytest.mark.parametrize("kind", ["regular", "margin", "scaled"])
def test_the_gradient_raises_the_chosen_answer(kind: PreferenceLoss) -> None:
    rewards = torch.zeros(4, requires_grad=True)
    dpo(rewards, STRENGTH, kind, 2).backward()
    assert rewards.grad is not None
    # d(-log sigmoid(x))/dx = -sigmoid(-x), at x = 0 or -m, times m where scaled, over two pairs.
    slopes = {
        "regular": [0.5, 0.5],
        "margin": [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-3))],
        "scaled": [0.5, 1.5],
    }[kind]
    expected = [value for slope in slopes for value in (-slope / 2, slope / 2)]
    assert rewards.grad.tolist() == pytest.approx(expected, abs=1e-6)


def test_implicit_rewards_are_summed_log_ratios() -> None:
    logps = torch.tensor([-1.0, -2.0, -0.5, -3.0], requires_grad=True)
    reference = torch.tensor([-1.5, -2.0, -1.5, -1.0], requires_grad=True)
    answer = torch.tensor([0, 0, 1, 1])
    rewards = implicit_rewards(logps, reference, answer, 2, BETA)
    assert rewards.tolist() == pytest.approx([BETA * 0.5, BETA * (1.0 - 2.0)])
    rewards.sum().backward()
    assert logps.grad is not None and logps.grad.tolist() == [BETA] * 4
    assert reference.grad is None, "the reference is constant"


def test_parts_of_an_update_add_up() -> None:
    rewards = torch.tensor(REWARDS)
    whole = dpo(rewards, STRENGTH, "scaled", 2)
    parts = [dpo(rewards[2 * k : 2 * k + 2], STRENGTH[k : k + 1], "scaled", 2) for k in range(2)]
    assert whole.item() == pytest.approx(sum(part.item() for part in parts))
