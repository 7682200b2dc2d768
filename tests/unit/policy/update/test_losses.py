from __future__ import annotations

import math

import pytest
import torch

from policy.update.losses import clipped_sequence_ratio, clipped_token_ratio, reinforce

ANSWER = torch.tensor([0, 0, 1, 1, 1, 2])
ADVANTAGES = torch.tensor([1.5, -2.0, 0.5])


@pytest.fixture
def logps() -> torch.Tensor:
    torch.manual_seed(0)
    return -torch.rand(6, dtype=torch.double).requires_grad_()


def test_by_hand() -> None:
    logps = torch.tensor([-1.0, -2.0, -3.0, -1.0, -2.0, -4.0])
    # Sums -3, -6, -4 and means -1.5, -2, -4 against advantages 1.5, -2, 0.5, over 4 answers of the whole
    # update.
    expected_sum = -(1.5 * -3 + -2.0 * -6 + 0.5 * -4) / 4
    expected_mean = -(1.5 * -1.5 + -2.0 * -2 + 0.5 * -4) / 4
    assert reinforce(logps, ANSWER, ADVANTAGES, "sequence_sum", 4.0).item() == pytest.approx(expected_sum)
    assert reinforce(logps, ANSWER, ADVANTAGES, "sequence_mean", 4.0).item() == pytest.approx(expected_mean)
    # One mean over the 6 tokens: the sums again, divided by tokens.
    assert reinforce(logps, ANSWER, ADVANTAGES, "token_mean", 6.0).item() == pytest.approx(
        expected_sum * 4 / 6
    )


def test_gradient_by_hand(logps: torch.Tensor) -> None:
    (gradient,) = torch.autograd.grad(reinforce(logps, ANSWER, ADVANTAGES, "sequence_sum", 3.0), logps)
    assert torch.allclose(gradient, -ADVANTAGES.double()[ANSWER] / 3)
    (gradient,) = torch.autograd.grad(reinforce(logps, ANSWER, ADVANTAGES, "token_mean", 6.0), logps)
    assert torch.allclose(gradient, -ADVANTAGES.double()[ANSWER] / 6)
    (gradient,) = torch.autograd.grad(reinforce(logps, ANSWER, ADVANTAGES, "sequence_mean", 3.0), logps)
    lengths = torch.tensor([2.0, 3.0, 1.0], dtype=torch.double)
    assert torch.allclose(gradient, -(ADVANTAGES / lengths)[ANSWER] / 3)


def test_a_step_down_the_gradient_raises_good_answers_and_lowers_bad_ones(logps: torch.Tensor) -> None:
    (gradient,) = torch.autograd.grad(reinforce(logps, ANSWER, ADVANTAGES, "sequence_sum", 3.0), logps)
    moved = -gradient
    assert (moved[ANSWER == 0] > 0).all()
    assert (moved[ANSWER == 1] < 0).all()


def test_importance_weights_multiply_each_tokens_gradient(logps: torch.Tensor) -> None:
    weights = torch.tensor([1.0, 0.5, 2.0, 1.0, 0.0, 3.0], dtype=torch.double)
    loss = reinforce(logps, ANSWER, ADVANTAGES, "sequence_sum", 3.0, weights)
    (gradient,) = torch.autograd.grad(loss, logps)
    assert torch.allclose(gradient, -weights * ADVANTAGES.double()[ANSWER] / 3)
    (plain,) = torch.autograd.grad(reinforce(logps, ANSWER, ADVANTAGES, "sequence_sum", 3.0), logps)
    ones = reinforce(logps, ANSWER, ADVANTAGES, "sequence_sum", 3.0, torch.ones(6, dtype=torch.double))
    assert torch.equal(torch.autograd.grad(ones, logps)[0], plain)


def test_the_clipped_ratio_by_hand() -> None:
    old = torch.full((4,), -1.0)
    answer = torch.arange(4)
    ratios = [1.5, 1.5, 0.5, 0.5]
    advantages = torch.tensor([2.0, -2.0, 2.0, -2.0])
    # min(r A, clip(r, 0.8, 1.2) A): 1.2 x 2; -1.5 x 2; 0.5 x 2; -0.8 x 2: a clip only ever takes a gain away.
    expected = -(2.4 - 3.0 + 1.0 - 1.6) / 4
    logps = (old + torch.tensor(ratios).log()).requires_grad_()
    loss, clipped = clipped_sequence_ratio(logps, old, answer, advantages, (0.2, 0.2), 4.0)
    assert loss.item() == pytest.approx(expected)
    assert clipped.tolist() == [True, False, False, True]
    (gradient,) = torch.autograd.grad(loss, logps)
    # d r / d logp = r; none where the clip holds.
    assert gradient.tolist() == pytest.approx([0.0, 1.5 * 2 / 4, -0.5 * 2 / 4, 0.0])
    weighted, _ = clipped_sequence_ratio(
        logps, old, answer, advantages, (0.2, 0.2), 4.0, torch.tensor([2.0, 1.0, 0.5, 0.0])
    )
    assert weighted.item() == pytest.approx(-(2 * 2.4 - 3.0 + 0.5 * 1.0) / 4)


@pytest.mark.parametrize("per_token", [False, True])
def test_the_upper_bound_of_a_ratio_has_a_clip_of_its_own(per_token: bool) -> None:
    old, answer, advantages = torch.full((4,), -1.0), torch.arange(4), torch.tensor([2.0, 2.0, -2.0, -2.0])
    logps = old + torch.tensor([1.25, 1.5, 0.85, 0.5]).log()
    # Bounds 0.8 and 1.28: 1.25 x 2 is within; 1.28 x 2; -0.85 x 2 is within; -0.8 x 2.
    if per_token:
        loss, clipped = clipped_token_ratio(logps, old, answer, advantages, 4, "token_mean", (0.2, 0.28), 4.0)
    else:
        loss, clipped = clipped_sequence_ratio(logps, old, answer, advantages, (0.2, 0.28), 4.0)
    assert loss.item() == pytest.approx(-(2.5 + 2.56 - 1.7 - 1.6) / 4)
    assert clipped.tolist() == [False, True, False, True]


def test_the_ratio_is_of_whole_answers() -> None:
    old = torch.tensor([-1.0, -2.0, -3.0])
    logps = old + torch.tensor([0.1, -0.05, 0.02])
    loss, _ = clipped_sequence_ratio(
        logps, old, torch.tensor([0, 0, 1]), torch.tensor([1.0, -3.0]), (0.2, 0.2), 2.0
    )
    assert loss.item() == pytest.approx(-(math.exp(0.05) - 3 * math.exp(0.02)) / 2)


def test_the_clipped_ratios_gradient_is_the_finite_difference(logps: torch.Tensor) -> None:
    old = logps.detach() + torch.tensor([0.03, -0.05, 0.3, 0.1, 0.2, -0.4], dtype=torch.double)

    def value(at: torch.Tensor) -> torch.Tensor:
        return clipped_sequence_ratio(at, old, ANSWER, ADVANTAGES.double(), (0.2, 0.2), 3.0)[0]

    assert torch.autograd.gradcheck(value, (logps,))


def test_at_ratio_1_the_gradient_is_reinforces(logps: torch.Tensor) -> None:
    loss, clipped = clipped_sequence_ratio(logps, logps.detach(), ANSWER, ADVANTAGES, (0.2, 0.2), 3.0)
    assert loss.item() == pytest.approx(-ADVANTAGES.mean().item()) and not clipped.any()
    (theirs,) = torch.autograd.grad(loss, logps)
    (ours,) = torch.autograd.grad(reinforce(logps, ANSWER, ADVANTAGES, "sequence_sum", 3.0), logps)
    assert torch.allclose(ours, theirs, rtol=1e-12, atol=0)


def test_advantages_are_constants(logps: torch.Tensor) -> None:
    advantages = ADVANTAGES.double().requires_grad_()
    reinforce(logps, ANSWER, advantages, "sequence_sum", 3.0).backward()
    assert advantages.grad is None


def test_an_answer_without_advantage_gives_no_gradient(logps: torch.Tensor) -> None:
    (gradient,) = torch.autograd.grad(
        reinforce(logps, ANSWER, torch.tensor([1.0, 0.0, -1.0]), "sequence_mean", 2.0), logps
    )
    assert gradient[ANSWER == 1].tolist() == [0.0, 0.0, 0.0]


def test_rows_add_up_to_the_update() -> None:
    logps = torch.linspace(-3, -1, 6)
    whole = reinforce(logps, ANSWER, ADVANTAGES, "token_mean", 3.0)
    first = reinforce(logps[:2], ANSWER[:2], ADVANTAGES[:1], "token_mean", 3.0)
    rest = reinforce(logps[2:], ANSWER[2:] - 1, ADVANTAGES[1:], "token_mean", 3.0)
    assert torch.allclose(first + rest, whole)


def test_a_higher_upper_clip() -> None:
    """Ratios 1.25 and 0.75: only the lower bound of 0.2 takes a gradient away, the upper one of 0.28 does
    not."""
    old = torch.zeros(4)
    logps = torch.tensor([1.25, 1.25, 0.75, 0.75]).log().requires_grad_()
    answer, advantages = torch.arange(4), torch.tensor([1.0, -1.0, 1.0, -1.0])
    for loss_of in (
        lambda clip: clipped_sequence_ratio(logps, old, answer, advantages, clip, 4.0),
        lambda clip: clipped_token_ratio(logps, old, answer, advantages, 4, "sequence_sum", clip, 4.0),
    ):
        loss, clipped = loss_of((0.2, 0.28))
        assert clipped.tolist() == [False, False, False, True]
        assert loss.item() == pytest.approx(-(1.25 - 1.25 + 0.75 - 0.8) / 4)
        _, symmetric = loss_of((0.2, 0.2))
        assert symmetric.tolist() == [True, False, False, True]
