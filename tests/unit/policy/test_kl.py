from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from policy.kl import Estimator, kl_of_answers, kl_of_tokens

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
    """Over all outcomes of a small distribution: E_policy[estimate] against KL(policy || reference), exactly."""
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
