from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from policy.update.losses import Estimator, kl_charges, kl_loss, kl_of_answers, kl_of_tokens, trl_beta

ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)
ratios = st.lists(st.floats(-5, 5), min_size=1, max_size=20)


def test_tokens_by_hand() -> None:
    d = torch.tensor([0.0, 1.0, -2.0])
    expected = {
        "k1": [0.0, 1.0, -2.0],
        "abs": [0.0, 1.0, 2.0],
        "k2": [0.0, 0.5, 2.0],
        "k3": [0.0, math.exp(-1) - 1 + 1, math.exp(2) - 1 - 2],
    }
    for estimator in ESTIMATORS:
        assert kl_of_tokens(d, estimator).tolist() == pytest.approx(expected[estimator], abs=1e-6)


def test_answers_by_hand() -> None:
    d = torch.tensor([1.0, -3.0, 0.5])
    answer = torch.tensor([0, 0, 1])
    assert kl_of_answers(d, answer, 2, "k1", "sum").tolist() == [-2.0, 0.5]
    assert kl_of_answers(d, answer, 2, "k1", "mean").tolist() == [-1.0, 0.5]
    assert kl_of_answers(d, answer, 2, "abs", "sum").tolist() == [4.0, 0.5]
    assert kl_of_answers(d, answer, 2, "abs", "mean").tolist() == [2.0, 0.5]
    assert kl_of_answers(d, answer, 2, "k2", "sum").tolist() == [5.0, 0.125]


@given(ratios)
def test_only_k1_may_be_negative(values: list[float]) -> None:
    d = torch.tensor(values, dtype=torch.double)
    for estimator in ESTIMATORS:
        if estimator != "k1":
            assert (kl_of_tokens(d, estimator) >= -1e-12).all()


def test_k1_and_k3_are_unbiased_and_k2_is_not() -> None:
    """Over all outcomes of a small distribution: E_policy[estimate] against KL(policy || reference),
    exactly."""
    policy = torch.tensor([0.5, 0.25, 0.15, 0.1], dtype=torch.double)
    reference = torch.tensor([0.2, 0.2, 0.3, 0.3], dtype=torch.double)
    kl = sum(p * math.log(p / q) for p, q in zip(policy.tolist(), reference.tolist(), strict=True))
    d = policy.log() - reference.log()
    mean = {estimator: float((policy * kl_of_tokens(d, estimator)).sum()) for estimator in ESTIMATORS}
    assert mean["k1"] == pytest.approx(kl, rel=1e-12)
    assert mean["k3"] == pytest.approx(kl, rel=1e-12)
    assert abs(mean["k2"] - kl) > 0.01
    assert mean["abs"] > kl + 0.01


@given(ratios, st.sampled_from(ESTIMATORS))
def test_the_sum_is_the_mean_times_the_length(values: list[float], estimator: Estimator) -> None:
    d = torch.tensor(values, dtype=torch.double)
    answer = torch.zeros(len(values), dtype=torch.long)
    total = kl_of_answers(d, answer, 1, estimator, "sum").item()
    assert total == pytest.approx(
        kl_of_answers(d, answer, 1, estimator, "mean").item() * len(values), abs=1e-9
    )


POLICY = torch.tensor([0.5, 0.25, 0.15, 0.1], dtype=torch.double)
REFERENCE = torch.tensor([0.2, 0.2, 0.3, 0.3], dtype=torch.double)


def gradient_of(value: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(value, logits, retain_graph=True)[0]


def test_what_the_loss_pulls_towards() -> None:
    """E_policy[gradient of the estimate], exactly, against the gradient of what the estimator stands for."""
    logits = POLICY.log().requires_grad_()
    logps = torch.log_softmax(logits, dim=0)
    policy, d = logps.exp(), logps - REFERENCE.log()
    pulls = {
        estimator: sum(
            POLICY[a]
            * gradient_of(
                kl_loss(
                    logps[a : a + 1],
                    REFERENCE.log()[a : a + 1],
                    torch.tensor([0]),
                    torch.tensor([True]),
                    estimator,
                    "sum",
                    1.0,
                ),
                logits,
            )
            for a in range(4)
        )
        for estimator in ESTIMATORS
    }
    targets = {
        "k1": torch.zeros(4, dtype=torch.double),
        "abs": gradient_of((policy - REFERENCE).abs().sum(), logits),
        "k2": gradient_of((policy * d).sum(), logits),
        "k3": gradient_of(-(REFERENCE * d).sum(), logits),  # KL(reference || policy)
    }
    for estimator in ESTIMATORS:
        assert torch.allclose(torch.as_tensor(pulls[estimator]), targets[estimator], atol=1e-12), estimator
    assert (targets["k2"] - targets["k3"]).abs().max() > 0.01


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_gradient_of_the_loss_is_the_finite_difference(estimator: Estimator, reduction: str) -> None:
    logps = torch.tensor([-1.0, -2.0, -0.5, -3.0, -1.2], dtype=torch.double, requires_grad=True)
    reference = torch.tensor([-1.5, -1.0, -0.7, -2.0, -1.0], dtype=torch.double)
    answer, counted = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([True, True, False])

    def value(at: torch.Tensor) -> torch.Tensor:
        return kl_loss(at, reference, answer, counted, estimator, reduction, 2.0)  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(value, (logps,))


def test_the_loss_by_hand() -> None:
    logps, reference = torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-2.0, -1.0, -1.0])
    answer, counted = torch.tensor([0, 0, 1]), torch.tensor([True, True])
    # d = 1, -1, -2; the mean over 2 answers of sums 1 + 1 and 2.
    assert kl_loss(logps, reference, answer, counted, "abs", "sum", 2.0).item() == pytest.approx(2.0)
    assert kl_loss(logps, reference, answer, counted, "k2", "mean", 2.0).item() == pytest.approx(1.25)
    only = torch.tensor([True, False])
    assert kl_loss(logps, reference, answer, only, "abs", "sum", 1.0).item() == pytest.approx(2.0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_what_tokens_are_charged_adds_up_to_what_their_answer_is(estimator: Estimator) -> None:
    d, answer = torch.tensor([1.0, -3.0, 0.5, 2.0]), torch.tensor([0, 0, 0, 1])
    kl = kl_of_tokens(d, estimator)
    assert torch.equal(kl_charges(d, answer, 2, estimator, "sum"), kl)
    assert torch.allclose(
        kl_charges(d, answer, 2, estimator, "mean"), kl / torch.tensor([3.0, 3.0, 3.0, 1.0])
    )
    mean = kl_of_answers(d, answer, 2, estimator, "mean")
    assert kl_charges(d, answer, 2, estimator, "mean")[:3].sum().item() == pytest.approx(
        mean[0].item(), abs=1e-6
    )


def test_trls_beta() -> None:
    assert trl_beta(0.05, "k1", "sum", 200, 0.01) == 0.05
    assert trl_beta(0.01, "k3", "mean", 200, 0.01) == pytest.approx(5e-5)
    # Log-ratios drawn as the formula takes them: normal, mean kl, variance 2 kl. Both charge an answer of 10
    # tokens as much.
    kl, length = 0.02, 10
    d = kl + math.sqrt(2 * kl) * torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    assert (-d).exp().mean().item() == pytest.approx(1.0, abs=2e-3)
    charged = 0.3 * d.abs().mean().item()
    beta = trl_beta(0.3, "abs", "mean", length, kl)
    assert beta * length * kl == pytest.approx(charged, rel=0.02)
