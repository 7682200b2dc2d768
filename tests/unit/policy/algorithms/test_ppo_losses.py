"""PPO's two losses, by hand and by finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from policy.update.losses import Reduction, clipped_token_ratio, clipped_value_loss, reinforce

ANSWER = torch.tensor([0, 0, 1, 1, 1, 2])
EVERY = torch.ones(6, dtype=torch.bool)


@pytest.fixture
def logps() -> torch.Tensor:
    torch.manual_seed(0)
    return -torch.rand(6, dtype=torch.double).requires_grad_()


def test_the_clipped_ratio_by_hand() -> None:
    old = torch.full((4,), -1.0)
    answer = torch.tensor([0, 0, 1, 1])
    advantages = torch.tensor([2.0, -2.0, 2.0, -2.0])
    logps = (old + torch.tensor([1.5, 1.5, 0.5, 0.5]).log()).requires_grad_()
    # min(r A, clip(r, 0.8, 1.2) A): 1.2 x 2; -1.5 x 2; 0.5 x 2; -0.8 x 2: a clip only ever takes a gain away.
    loss, clipped = clipped_token_ratio(logps, old, answer, advantages, 2, "token_mean", (0.2, 0.2), 4.0)
    assert loss.item() == pytest.approx(-(2.4 - 3.0 + 1.0 - 1.6) / 4)
    assert clipped.tolist() == [True, False, False, True]
    (gradient,) = torch.autograd.grad(loss, logps)
    assert gradient.tolist() == pytest.approx([0.0, 1.5 * 2 / 4, -0.5 * 2 / 4, 0.0])
    weights = torch.tensor([2.0, 1.0, 0.5, 0.0])
    weighted, _ = clipped_token_ratio(
        logps, old, answer, advantages, 2, "token_mean", (0.2, 0.2), 4.0, weights
    )
    assert weighted.item() == pytest.approx(-(2 * 2.4 - 3.0 + 0.5 * 1.0) / 4)


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_sum", "sequence_mean"])
def test_at_ratio_1_the_gradient_is_reinforces(logps: torch.Tensor, reduction: Reduction) -> None:
    """With one advantage for all tokens of an answer."""
    of_answers = torch.tensor([1.5, -2.0, 0.5], dtype=torch.double)
    loss, clipped = clipped_token_ratio(
        logps, logps.detach(), ANSWER, of_answers[ANSWER], 3, reduction, (0.2, 0.2), 3.0
    )
    assert not clipped.any()
    (ours,) = torch.autograd.grad(loss, logps)
    (theirs,) = torch.autograd.grad(reinforce(logps, ANSWER, of_answers, reduction, 3.0), logps)
    assert torch.allclose(ours, theirs, rtol=1e-12, atol=0)


def test_the_ratios_gradient_is_the_finite_difference(logps: torch.Tensor) -> None:
    old = logps.detach() + torch.tensor([0.03, -0.05, 0.3, 0.1, 0.15, -0.4], dtype=torch.double)
    advantages = torch.tensor([1.0, -2.0, 0.5, -1.5, 3.0, 2.0], dtype=torch.double)

    def value(at: torch.Tensor) -> torch.Tensor:
        return clipped_token_ratio(at, old, ANSWER, advantages, 3, "sequence_mean", (0.2, 0.2), 3.0)[0]

    assert torch.autograd.gradcheck(value, (logps,))


def test_the_value_loss_by_hand() -> None:
    # Value now, when sampled, and return; a value may count 1 away from what it was.
    cases: list[tuple[float, float, float, float, float, bool]] = [
        # now, then, return -> error that counts, slope of its square, clipped
        (0.5, 0.0, 3.0, 2.5, -2 * 2.5, False),  # within reach: as it is
        (2.0, 0.0, 3.0, 2.0, 0.0, True),  # nearer by more than 1: the error at 1, and no gradient
        (-2.0, 0.0, 3.0, 5.0, -2 * 5.0, False),  # away by more than 1: the error as it is, larger than at -1
        (5.0, 0.0, 3.0, 2.0, 2 * 2.0, False),  # past the return, as far as the clip leaves it short
    ]
    now, then, returns = (torch.tensor([case[k] for case in cases]) for k in range(3))
    now.requires_grad_()
    answer, counted = torch.tensor([0, 0, 1, 1]), torch.ones(4, dtype=torch.bool)
    loss, clipped = clipped_value_loss(now, then, returns, counted, answer, 2, "token_mean", 1.0, 4.0)
    assert loss.item() == pytest.approx(sum(case[3] ** 2 for case in cases) / 2 / 4)
    assert clipped.tolist() == [case[5] for case in cases]
    (gradient,) = torch.autograd.grad(loss, now)
    # The last is a tie of the two errors, 2 and 2: torch gives half of each one's slope.
    slopes = [case[4] for case in cases[:3]] + [cases[3][4] / 2]
    assert gradient.tolist() == pytest.approx([slope / 2 / 4 for slope in slopes])


def test_values_that_are_not_clipped_or_do_not_count() -> None:
    values = torch.tensor([1.0, 5.0, 2.0]).requires_grad_()
    returns = torch.tensor([0.0, float("nan"), 4.0])
    counted = torch.tensor([True, False, True])
    loss, clipped = clipped_value_loss(
        values, torch.zeros(3), returns, counted, torch.arange(3), 3, "token_mean", None, 2.0
    )
    assert loss.item() == (1.0 + 4.0) / 2 / 2 and not clipped.any()
    (gradient,) = torch.autograd.grad(loss, values)
    assert gradient.tolist() == [0.5, 0.0, -1.0]  # a step down goes towards the return


@pytest.mark.parametrize("clip", [None, 0.3])
def test_the_values_gradient_is_the_finite_difference(clip: float | None) -> None:
    torch.manual_seed(1)
    values = torch.randn(6, dtype=torch.double).requires_grad_()
    old, returns = torch.randn(2, 6, dtype=torch.double)

    def value(at: torch.Tensor) -> torch.Tensor:
        return clipped_value_loss(at, old, returns, EVERY, ANSWER, 3, "sequence_mean", clip, 3.0)[0]

    assert torch.autograd.gradcheck(value, (values,))


def test_returns_and_old_values_are_constants() -> None:
    values, old, returns = (torch.randn(6).requires_grad_() for _ in range(3))
    loss, _ = clipped_value_loss(values, old, returns, EVERY, ANSWER, 3, "token_mean", 0.2, 6.0)
    loss.backward()
    assert values.grad is not None and old.grad is None and returns.grad is None


Loss = Callable[[slice, int], torch.Tensor]


def test_rows_add_up_to_the_update() -> None:
    torch.manual_seed(2)
    logps, old, advantages, values, returns = torch.randn(5, 6) * 0.2

    def ratio(part: slice, answers: int) -> torch.Tensor:
        return clipped_token_ratio(
            logps[part],
            old[part],
            ANSWER[part] - ANSWER[part][0],
            advantages[part],
            answers,
            "token_mean",
            (0.1, 0.1),
            6.0,
        )[0]

    def value(part: slice, answers: int) -> torch.Tensor:
        return clipped_value_loss(
            values[part], old[part], returns[part], EVERY[part], ANSWER[part] - ANSWER[part][0], answers,
            "token_mean", 0.1, 6.0,
        )[0]  # fmt: skip

    losses: list[Loss] = [ratio, value]
    for loss in losses:
        whole = loss(slice(0, 6), 3)
        assert torch.allclose(loss(slice(0, 2), 1) + loss(slice(2, 6), 2), whole)
