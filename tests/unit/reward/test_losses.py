from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reward.losses import PreferenceLoss, bradley_terry, centering, regression

KINDS: tuple[PreferenceLoss, ...] = get_args(PreferenceLoss)


def softplus(x: float) -> float:
    """-log sigmoid(-x)."""
    return math.log1p(math.exp(x))


def vector(*values: float) -> Tensor:
    return torch.tensor(values)


def test_regression_by_hand() -> None:
    scores = torch.tensor([[1.0, 2.0], [0.5, 9.0]])
    ratings = torch.tensor([[3.0, 2.5], [0.0, 7.0]])
    present = torch.tensor([[True, True], [True, False]])
    # (1-3)^2 + (2-2.5)^2 + (0.5-0)^2 = 4 + 0.25 + 0.25, over the three ratings that are there.
    assert regression(scores, ratings, present, 3.0).item() == pytest.approx(4.5 / 3)


def test_bradley_terry_by_hand() -> None:
    chosen, rejected, strength = vector(2.0, 0.0), vector(1.0, 0.5), vector(1.0, 3.0)
    # Margins 1 and -0.5; -log sigmoid(m) = log(1 + exp(-m)).
    plain = [softplus(-1.0), softplus(0.5)]
    with_margin = [softplus(-(1.0 - 1.0)), softplus(-(-0.5 - 3.0))]
    expected = {
        "regular": sum(plain) / 2,
        "margin": sum(with_margin) / 2,
        "scaled": (1 * plain[0] + 3 * plain[1]) / 2,
    }
    assert with_margin[0] == pytest.approx(math.log(2))
    for kind in KINDS:
        assert bradley_terry(chosen, rejected, strength, kind, 2.0).item() == pytest.approx(expected[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_equal_rewards_cost_log_2_a_pair_of_strength_1(kind: PreferenceLoss) -> None:
    margin = 1.0 if kind == "margin" else 0.0
    loss = bradley_terry(vector(0.3 + margin), vector(0.3), vector(1.0), kind, 1.0)
    assert loss.item() == pytest.approx(math.log(2))


def trls_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | None, centre: float | None) -> float:
    """What TRL's own RewardTrainer computes of these rewards, in the mode of evaluation."""
    from trl import RewardTrainer

    same = SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer: Any = SimpleNamespace(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=centre),
        accelerator=same,
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    logits = torch.cat([chosen, rejected])[:, None]  # the first half chosen, the second rejected
    inputs = {} if margin is None else {"margin": margin}
    return RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=logits), inputs).item()


def test_regular_margin_and_centring_are_trls() -> None:
    torch.manual_seed(0)
    chosen, rejected, strength = torch.randn(7), torch.randn(7), torch.randint(1, 4, (7,)).float()
    regular = bradley_terry(chosen, rejected, strength, "regular", 7.0)
    margin = bradley_terry(chosen, rejected, strength, "margin", 7.0)
    assert regular.item() == pytest.approx(trls_loss(chosen, rejected, None, None))
    assert margin.item() == pytest.approx(trls_loss(chosen, rejected, strength, None))
    centred = margin + 0.3 * centering(chosen, rejected, 7.0)
    assert centred.item() == pytest.approx(trls_loss(chosen, rejected, strength, 0.3))
    assert centred.item() != pytest.approx(margin.item(), rel=0.01)


def test_centring_by_hand() -> None:
    # (2 + 1)^2 + (0 - 0.5)^2 = 9.25, over two pairs.
    chosen, rejected = vector(2.0, 0.0), vector(1.0, -0.5)
    assert centering(chosen, rejected, 2.0).item() == pytest.approx(9.25 / 2)
    assert centering(vector(1.5), vector(-1.5), 1.0).item() == 0.0  # around zero already, however far apart


def test_gradient_of_centring() -> None:
    torch.manual_seed(0)
    chosen, rejected = (torch.randn(4, dtype=torch.double, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda c, r: centering(c, r, 4.0), (chosen, rejected))
    centering(chosen, rejected, 4.0).backward()
    assert chosen.grad is not None and rejected.grad is not None
    slope = 2 * (chosen + rejected).detach() / 4
    assert torch.allclose(chosen.grad, slope) and torch.allclose(rejected.grad, slope)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_falls_as_the_chosen_rises(kind: PreferenceLoss) -> None:
    rejected, strength = vector(0.0, 0.0), vector(1.0, 2.0)
    losses = [
        bradley_terry(vector(rise, rise), rejected, strength, kind, 2.0).item()
        for rise in (-2.0, -1.0, 0.0, 1.0, 2.0)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1] + 1


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_bradley_terry(kind: PreferenceLoss) -> None:
    torch.manual_seed(0)
    chosen, rejected = (torch.randn(4, dtype=torch.double, requires_grad=True) for _ in range(2))
    strength = torch.tensor([1.0, 2.0, 3.0, 1.0], dtype=torch.double)
    assert torch.autograd.gradcheck(lambda c, r: bradley_terry(c, r, strength, kind, 4.0), (chosen, rejected))
    # By hand: d/dc [-log sigmoid(c - r)] = -(1 - sigmoid(c - r)).
    bradley_terry(chosen, rejected, strength, kind, 4.0).backward()
    margin = (chosen - rejected).detach() - (strength if kind == "margin" else 0)
    slope = -torch.sigmoid(-margin) / 4 * (strength if kind == "scaled" else 1)
    assert chosen.grad is not None and rejected.grad is not None
    assert torch.allclose(chosen.grad, slope)
    assert torch.allclose(rejected.grad, -slope)


def test_gradient_of_regression() -> None:
    torch.manual_seed(0)
    scores = torch.randn(3, 2, dtype=torch.double, requires_grad=True)
    ratings = torch.randn(3, 2, dtype=torch.double)
    present = torch.tensor([[True, False], [True, True], [False, True]])
    assert torch.autograd.gradcheck(lambda s: regression(s, ratings, present, 4.0), (scores,))
    regression(scores, ratings, present, 4.0).backward()
    assert scores.grad is not None
    assert torch.allclose(scores.grad, 2 * (scores - ratings).detach() * present / 4)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e30])
def test_what_is_absent_is_not_looked_at(garbage: float) -> None:
    scores = torch.tensor([[1.0, 2.0]], requires_grad=True)
    loss = regression(scores, torch.tensor([[3.0, garbage]]), torch.tensor([[True, False]]), 1.0)
    loss.backward()
    assert loss.item() == 4.0
    assert scores.grad is not None
    assert scores.grad.tolist() == [[-4.0, 0.0]]


def test_shares_add_up_to_the_whole() -> None:
    """However an update is cut, its parts with the whole's denominator sum to the whole."""
    torch.manual_seed(0)
    scores, ratings, present = torch.randn(6, 3), torch.randn(6, 3), torch.rand(6, 3) > 0.4
    count = float(present.sum())
    parts = [
        regression(scores[cut], ratings[cut], present[cut], count)
        for cut in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    assert torch.allclose(sum(parts, torch.zeros(())), F.mse_loss(scores[present], ratings[present]))
    chosen, rejected, strength = torch.randn(6), torch.randn(6), torch.randint(1, 4, (6,)).float()
    for kind in KINDS:
        whole = bradley_terry(chosen, rejected, strength, kind, 6.0)
        halves = [
            bradley_terry(chosen[s], rejected[s], strength[s], kind, 6.0) for s in (slice(2), slice(2, 6))
        ]
        assert torch.allclose(halves[0] + halves[1], whole)
    halves = [centering(chosen[s], rejected[s], 6.0) for s in (slice(2), slice(2, 6))]
    assert torch.allclose(halves[0] + halves[1], (chosen + rejected).square().mean())


def test_nothing_there_costs_nothing() -> None:
    empty = torch.zeros(0)
    assert bradley_terry(empty, empty, empty, "scaled", 0.0).item() == 0.0
    assert centering(empty, empty, 0.0).item() == 0.0
    absent = torch.zeros(2, 1, dtype=torch.bool)
    assert regression(torch.ones(2, 1), torch.ones(2, 1), absent, 0.0).item() == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_broadcasting_is_refused(kind: PreferenceLoss) -> None:
    with pytest.raises(ValueError, match=r"\[\(2,\), \(2, 1\), \(2,\)\]"):
        bradley_terry(torch.zeros(2), torch.zeros(2, 1), torch.ones(2), kind, 2.0)
    with pytest.raises(ValueError, match=r"\(2, 1\)"):
        centering(torch.zeros(2), torch.zeros(2, 1), 2.0)
    with pytest.raises(ValueError, match=r"\(2, 1\)"):
        regression(torch.zeros(2, 1), torch.zeros(2), torch.ones(2, 1, dtype=torch.bool), 2.0)
