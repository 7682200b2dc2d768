from __future__ import annotations

import pytest
import torch

from policy.losses import reinforce

ANSWER = torch.tensor([0, 0, 1, 1, 1, 2])
ADVANTAGES = torch.tensor([1.5, -2.0, 0.5])


@pytest.fixture
def logps() -> torch.Tensor:
    torch.manual_seed(0)
    return -torch.rand(6, dtype=torch.double).requires_grad_()


def test_by_hand() -> None:
    logps = torch.tensor([-1.0, -2.0, -3.0, -1.0, -2.0, -4.0])
    # Sums -3, -6, -4 and means -1.5, -2, -4 against advantages 1.5, -2, 0.5, over 4 answers of the whole update.
    expected_sum = -(1.5 * -3 + -2.0 * -6 + 0.5 * -4) / 4
    expected_mean = -(1.5 * -1.5 + -2.0 * -2 + 0.5 * -4) / 4
    assert reinforce(logps, ANSWER, ADVANTAGES, "sequence_sum", 4.0).item() == pytest.approx(expected_sum)
    assert reinforce(logps, ANSWER, ADVANTAGES, "token_mean", 4.0).item() == pytest.approx(expected_mean)


def test_gradient_by_hand(logps: torch.Tensor) -> None:
    (gradient,) = torch.autograd.grad(reinforce(logps, ANSWER, ADVANTAGES, "sequence_sum", 3.0), logps)
    assert torch.allclose(gradient, -ADVANTAGES.double()[ANSWER] / 3)
    (gradient,) = torch.autograd.grad(reinforce(logps, ANSWER, ADVANTAGES, "token_mean", 3.0), logps)
    lengths = torch.tensor([2.0, 3.0, 1.0], dtype=torch.double)
    assert torch.allclose(gradient, -(ADVANTAGES / lengths)[ANSWER] / 3)


def test_a_step_down_the_gradient_raises_good_answers_and_lowers_bad_ones(logps: torch.Tensor) -> None:
    (gradient,) = torch.autograd.grad(reinforce(logps, ANSWER, ADVANTAGES, "sequence_sum", 3.0), logps)
    moved = -gradient
    assert (moved[ANSWER == 0] > 0).all()
    assert (moved[ANSWER == 1] < 0).all()


def test_the_gradient_is_trls_at_ratio_1(logps: torch.Tensor) -> None:
    """trl/trainer/rloo_trainer.py, `_compute_loss`: -min(r A, clip(r) A), r = exp(log pi - log pi_old), pi_old = pi."""
    sums = torch.stack([logps[n == ANSWER].sum() for n in range(3)])
    ratio = torch.exp(sums - sums.detach())
    trl = -torch.min(ratio * ADVANTAGES, torch.clamp(ratio, 0.8, 1.2) * ADVANTAGES).mean()
    (theirs,) = torch.autograd.grad(trl, logps)
    (ours,) = torch.autograd.grad(reinforce(logps, ANSWER, ADVANTAGES, "sequence_sum", 3.0), logps)
    assert torch.allclose(ours, theirs, rtol=1e-12, atol=0)


def test_advantages_are_constants(logps: torch.Tensor) -> None:
    advantages = ADVANTAGES.double().requires_grad_()
    reinforce(logps, ANSWER, advantages, "sequence_sum", 3.0).backward()
    assert advantages.grad is None


def test_an_answer_without_advantage_gives_no_gradient(logps: torch.Tensor) -> None:
    (gradient,) = torch.autograd.grad(
        reinforce(logps, ANSWER, torch.tensor([1.0, 0.0, -1.0]), "token_mean", 2.0), logps
    )
    assert gradient[ANSWER == 1].tolist() == [0.0, 0.0, 0.0]


def test_rows_add_up_to_the_update() -> None:
    logps = torch.linspace(-3, -1, 6)
    whole = reinforce(logps, ANSWER, ADVANTAGES, "token_mean", 3.0)
    first = reinforce(logps[:2], ANSWER[:2], ADVANTAGES[:1], "token_mean", 3.0)
    rest = reinforce(logps[2:], ANSWER[2:] - 1, ADVANTAGES[1:], "token_mean", 3.0)
    assert torch.allclose(first + rest, whole)
