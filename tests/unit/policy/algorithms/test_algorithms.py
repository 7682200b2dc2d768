"""What each algorithm makes of a row, against the same written out in loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from policy.algorithms.protocol import Algorithm, MeasuredBatch
from policy.training.trainer import ALGORITHMS
from rlhf.config.algorithm import AlgorithmConfig
from rlhf.core.records import Rollout

G = 3
LENGTHS = [1, 2, 3, 2, 1, 4]
FINISHED = [True, True, False, True, False, False]
REWARDS = [1.0, 4.0, 10.0, 2.0, -1.0, 0.5]
PENALTY = [0.5, 0.0, 1.0, 0.0, 0.25, 0.0]


def rollouts() -> list[Rollout]:
    return [Rollout((1,), tuple(range(n)), (), done, "") for n, done in zip(LENGTHS, FINISHED, strict=True)]


def measured(logps: Tensor, weights: Tensor | None = None) -> MeasuredBatch:
    return MeasuredBatch(
        rewards_N=torch.tensor(REWARDS, dtype=torch.double),
        penalty_M=by_answer([penalty / length for penalty, length in zip(PENALTY, LENGTHS, strict=True)]),
        finished_N=torch.tensor(FINISHED),
        answer_M=torch.repeat_interleave(torch.arange(6), torch.tensor(LENGTHS)),
        logps_M=logps.detach(),
        reference_M=logps.detach(),
        importance_M=weights,
        group_size=G,
    )


@pytest.fixture
def logps() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return -torch.rand(sum(LENGTHS), generator=generator, dtype=torch.double).requires_grad_()


def advantages(algorithm: Algorithm, row: MeasuredBatch) -> Tensor:
    (result,), figures = algorithm.compute_advantages([row], lambda local: local)
    assert figures == {} and result.returns_M is None
    return result.values


def gradient(settings: dict[str, Any], logps: Tensor, weights: Tensor | None = None) -> Tensor:
    config = AlgorithmConfig.model_validate(settings)
    algorithm = ALGORITHMS[config.name](config)
    row = measured(logps, weights)
    loss = algorithm.objective(logps, row, advantages(algorithm, row), algorithm.denominator(rollouts())).loss
    return torch.autograd.grad(loss, logps)[0]


def by_answer(slopes: list[float]) -> Tensor:
    """The same slope for every token of an answer."""
    return torch.repeat_interleave(torch.tensor(slopes, dtype=torch.double), torch.tensor(LENGTHS))


R = [reward - penalty for reward, penalty in zip(REWARDS, PENALTY, strict=True)]  # 0.5, 4, 9, 2, -1.25, 0.5


def test_reinforce(logps: Tensor) -> None:
    # The first group's two finished answers against each other; the one of the second has no finished
    # sibling. Tokens of
    # finished answers: 1 + 2 + 2.
    a = [R[0] - R[1], R[1] - R[0], 0.0, 0.0, 0.0, 0.0]
    assert torch.allclose(gradient({}, logps), by_answer([-item / 5 for item in a]))


def test_reinforce_with_aligners_bugs(logps: Tensor) -> None:
    # Each answer's own mean, over all six answers.
    a = [R[0] - R[1], R[1] - R[0], 0.0, 0.0, 0.0, 0.0]
    expected = by_answer([-item / length / 6 for item, length in zip(a, LENGTHS, strict=True)])
    assert torch.allclose(gradient({"compat": True}, logps), expected)


def test_aligners_slip_of_the_divisor_is_in_the_advantages_alone(logps: Tensor) -> None:
    config = AlgorithmConfig.model_validate({"compat": True})
    result = advantages(ALGORITHMS["reinforce"](config), measured(logps))
    # The cut answer: against the sum of two finished siblings, divided by 2 - 1.
    assert result.tolist() == pytest.approx([R[0] - R[1], R[1] - R[0], R[2] - (R[0] + R[1]), 0, 0, 0])


def test_rloo(logps: Tensor) -> None:
    a = []
    for first in (0, 3):
        group = R[first : first + G]
        a += [r - (sum(group) - r) / 2 for r in group]
    assert torch.allclose(gradient({"name": "rloo"}, logps), by_answer([-item / 6 for item in a]))


@pytest.mark.parametrize("settings", [{}, {"compat": True}, {"name": "rloo"}])
def test_importance_weights_scale_the_gradient(settings: dict[str, Any], logps: Tensor) -> None:
    plain = gradient(settings, logps)
    assert torch.allclose(gradient(settings, logps, torch.ones(len(plain), dtype=torch.double)), plain)
    weights = by_answer([0.5, 1.5, 1.0, 2.0, 0.25, 1.0])
    assert torch.allclose(gradient(settings, logps, weights), weights * plain)


def test_a_better_answer_becomes_likelier(logps: Tensor) -> None:
    """A step goes down the gradient. Of the first group the first answer is the worst, the second the better
    of the finished two, the third the best of all."""
    for settings, best in (({}, 1), ({"compat": True}, 1), ({"name": "rloo"}, 2)):
        slope = gradient(settings, logps)
        assert slope[0] > 0 > slope[sum(LENGTHS[:best])], settings


def test_more_kl_is_less_reward() -> None:
    logps = torch.zeros(sum(LENGTHS), dtype=torch.double)
    algorithm = ALGORITHMS["rloo"](AlgorithmConfig.model_validate({"name": "rloo"}))
    free = advantages(algorithm, measured(logps))
    row = measured(logps)
    row.penalty_M[1:3] += 0.5  # the two tokens of the second answer
    assert advantages(algorithm, row)[1] == free[1] - 1.0
