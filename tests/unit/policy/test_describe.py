from __future__ import annotations

import math
from typing import Any

import pytest

from policy.describe import describe_algorithm
from rlhf.config.algorithm import AlgorithmConfig


def lines(**told: Any) -> list[str]:
    return describe_algorithm(AlgorithmConfig.model_validate(told), longest=100)


def test_reinforce() -> None:
    beta = 0.01 / 50 * 2 / math.sqrt(math.pi * 0.05)
    assert lines() == [
        "Algorithm: reinforce; loss: token_mean; unfinished answers: drop",
        "KL penalty: 0.01 x mean of abs over an answer's tokens, in the reward",
        f"In TRL's convention (beta x sum of k1, in the reward): beta = {beta:.3g} = coefficient / L, for answers of L = 50 tokens "
        "(half of rollouts.max_new_tokens), x 2 / sqrt(pi k), the mean of |d| over that of d, for a KL of k = 0.05 nats a token",
    ]


def test_rloo_is_in_trls_convention_already() -> None:
    assert lines(name="rloo")[2].endswith("beta = 0.05 = coefficient")


def test_what_else_there_is_to_say() -> None:
    told = lines(compat=True, kl={"target": 6, "budget": 12, "horizon": 500})
    assert told[0].startswith("Algorithm: reinforce, with NeMo-Aligner's slips; loss: sequence_mean")
    assert told[3:] == [
        "The coefficient is steered to a KL of 6, over 500 answers",
        "The run ends where an answer's mean KL is beyond 12 nats",
    ]


@pytest.mark.parametrize(("estimator", "noted"), [("k1", True), ("abs", True), ("k2", False), ("k3", True)])
def test_a_gradient_that_is_not_the_kls_is_noted(estimator: str, noted: bool) -> None:
    told = lines(kl={"estimator": estimator, "placement": "loss"})
    assert any(line.startswith(f"Note: in the loss, {estimator} has ") for line in told) == noted
    assert not any("Note" in line for line in lines(kl={"estimator": estimator}))
