"""What PPO makes of the rows of an update, against the same written out in loops."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from policy.algorithms.ppo import PPO
from policy.algorithms.protocol import Advantages, MeasuredBatch
from policy.algorithms.reinforce import Reinforce
from rlhf.config.algorithm import AlgorithmConfig
from rlhf.core.records import Rollout

LENGTHS = [2, 3, 1, 2]
FINISHED = [True, False, True, True]
REWARDS = [1.0, 4.0, -1.0, 2.0]
PENALTY = [0.5, 0.0, 0.25, 0.0, -0.5, 1.0, 0.0, 0.125]
VALUES = [0.5, 1.0, 2.0, 3.0, 0.0, -2.0, 1.5, 0.25]
ANSWER = torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS))
OLD = torch.linspace(-3, -1, 8, dtype=torch.double)


def ppo(**settings: Any) -> PPO:
    return PPO.of(AlgorithmConfig.model_validate({"name": "ppo", **settings}))


def measured(**other: Any) -> MeasuredBatch:
    row = MeasuredBatch(
        rewards_N=torch.tensor(REWARDS, dtype=torch.double),
        penalty_M=torch.tensor(PENALTY, dtype=torch.double),
        finished_N=torch.tensor(FINISHED),
        answer_M=ANSWER,
        logps_M=OLD,
        reference_M=OLD,
        importance_M=None,
        group_size=2,
        values_M=torch.tensor(VALUES, dtype=torch.double),
    )
    return replace(row, **other)


def cut(row: MeasuredBatch, part: slice, answers: slice) -> MeasuredBatch:
    """Some answers of a row as a row of their own."""
    assert row.values_M is not None
    return replace(
        row,
        rewards_N=row.rewards_N[answers],
        penalty_M=row.penalty_M[part],
        finished_N=row.finished_N[answers],
        answer_M=row.answer_M[part] - row.answer_M[part][0],
        logps_M=row.logps_M[part],
        reference_M=row.reference_M[part],
        values_M=row.values_M[part],
    )


def by_hand(rewards: list[float], gae_lambda: float) -> list[float]:
    """The advantages of all tokens, discount 1."""
    result: list[float] = []
    for answer in range(4):
        places = [place for place in range(8) if ANSWER[place] == answer]
        later, next_value, values = 0.0, 0.0, []
        for place in reversed(places):
            reward = -PENALTY[place] + (rewards[answer] if place == places[-1] else 0.0)
            later = reward + next_value - VALUES[place] + gae_lambda * later
            next_value = VALUES[place]
            values.append(later)
        result += values[::-1]
    return result


def advantages_of(algorithm: PPO, *rows: MeasuredBatch) -> tuple[list[Advantages], dict[str, float]]:
    advantages, figures = algorithm.compute_advantages(rows, lambda local: local)
    return advantages, as_floats(figures)


def as_floats(figures: Mapping[str, Tensor | float]) -> dict[str, float]:
    return {name: float(value) for name, value in figures.items()}


def moments(values: list[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    return mean, sum((value - mean) ** 2 for value in values) / len(values)


def test_advantages_returns_and_figures() -> None:
    (only,), figures = advantages_of(
        ppo(unfinished="keep", critic={"whiten": False, "gae_lambda": 0.9}), measured()
    )
    expected = by_hand(REWARDS, 0.9)
    returns = [a + v for a, v in zip(expected, VALUES, strict=True)]
    assert only.values.tolist() == pytest.approx(expected)
    assert only.returns_M is not None and only.returns_M.tolist() == pytest.approx(returns)
    missed, of_returns = moments(expected)[1], moments(returns)[1]
    assert figures == pytest.approx(
        {
            "advantage/std": math.sqrt(missed),
            "return/mean": moments(returns)[0],
            "value/mean": sum(VALUES) / 8,
            "value/explained_variance": 1 - missed / of_returns,
        }
    )


def test_whitened_over_all_rows() -> None:
    rows = [cut(measured(), slice(0, 5), slice(0, 2)), cut(measured(), slice(5, 8), slice(2, 4))]
    result, figures = advantages_of(ppo(unfinished="keep"), *rows)
    plain = by_hand(REWARDS, 0.95)
    mean, variance = moments(plain)
    expected = [(a - mean) / math.sqrt(variance + 1e-8) for a in plain]
    assert torch.cat([item.values for item in result]).tolist() == pytest.approx(expected)
    # Returns are on the reward's own scale, and the standard deviation is not whitened.
    returns = torch.cat([item.returns_M for item in result if item.returns_M is not None])
    assert returns.tolist() == pytest.approx([a + v for a, v in zip(plain, VALUES, strict=True)])
    assert figures["advantage/std"] == pytest.approx(math.sqrt(variance))


def test_what_the_rule_for_unfinished_answers_does() -> None:
    """The second answer is cut off."""
    of_it = ANSWER == 1
    plain = torch.tensor(by_hand(REWARDS, 0.95), dtype=torch.double)
    (dropped,), _ = advantages_of(ppo(unfinished="drop"), measured())
    mean, variance = moments(plain[~of_it].tolist())
    expected = ((plain - mean) / math.sqrt(variance + 1e-8)).masked_fill(of_it, 0.0)
    assert torch.allclose(dropped.values, expected)
    punished = ppo(unfinished="penalty", unfinished_reward=-7, critic={"whiten": False})
    (result,), _ = advantages_of(punished, measured())
    assert result.values.tolist() == pytest.approx(by_hand([1.0, -7.0, -1.0, 2.0], 0.95))


def test_an_answer_without_a_reward_takes_no_part() -> None:
    algorithm = ppo(unfinished="keep")
    rewards = torch.tensor(REWARDS, dtype=torch.double)
    rewards[1] = math.nan
    row = measured(rewards_N=rewards)
    (result,), figures = advantages_of(algorithm, row)
    finished_only, others = advantages_of(ppo(unfinished="drop"), measured())
    assert torch.equal(result.values, finished_only[0].values) and figures == others
    assert result.returns_M is not None
    values = torch.zeros(8, dtype=torch.double, requires_grad=True)
    loss = algorithm.critic.objective(values, row, result.returns_M, 1.0).loss
    (gradient,) = torch.autograd.grad(loss, values)
    assert torch.isfinite(gradient).all() and not gradient[ANSWER == 1].any()
    assert gradient[ANSWER != 1].abs().min() > 0


def test_better_than_expected_becomes_likelier_and_expected() -> None:
    algorithm = ppo(unfinished="keep", critic={"whiten": False})
    row = measured()
    (result,), _ = advantages_of(algorithm, row)
    assert result.returns_M is not None and row.values_M is not None
    logps, values = OLD.clone().requires_grad_(), row.values_M.clone().requires_grad_()
    (slope,) = torch.autograd.grad(algorithm.objective(logps, row, result.values, 8.0).loss, logps)
    assert torch.allclose(slope, -result.values / 8)  # the ratio is 1
    (rise,) = torch.autograd.grad(algorithm.critic.objective(values, row, result.returns_M, 8.0).loss, values)
    assert torch.allclose(rise, -(result.returns_M - row.values_M) / 8)


def test_the_share_of_clipped_tokens_is_a_mean_over_answers() -> None:
    algorithm = ppo(unfinished="keep", clip=0.1)
    logps = OLD.clone()
    logps[0] += 0.5  # one of two tokens
    logps[5] += 0.5  # the only token
    objective = algorithm.objective(logps, measured(), torch.ones(8, dtype=torch.double), 8.0)
    assert objective.figures == {"ratio/clipped_share": 0.5 + 1.0}
    wider = ppo(unfinished="keep", clip=0.1, clip_high=1.0)  # e^0.5 is below 2
    objective = wider.objective(logps, measured(), torch.ones(8, dtype=torch.double), 8.0)
    assert objective.figures == {"ratio/clipped_share": 0.0}


def test_the_denominator_is_what_counts() -> None:
    rollouts = [
        Rollout((1,), tuple(range(n)), (), done, "") for n, done in zip(LENGTHS, FINISHED, strict=True)
    ]
    assert ppo().denominator(rollouts) == 5  # tokens of finished answers
    assert ppo(unfinished="keep").denominator(rollouts) == 8
    assert ppo(reduction="sequence_sum").denominator(rollouts) == 3


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_sum", "sequence_mean"])
@pytest.mark.parametrize("unfinished", ["keep", "drop"])
def test_without_a_critic_to_speak_of_it_is_reinforce_on_the_bare_reward(
    reduction: str, unfinished: str
) -> None:
    """Values 0, lambda and discount 1, no KL, no whitening, one pass."""
    settings = {"reduction": reduction, "unfinished": unfinished}
    algorithm = ppo(**settings, critic={"whiten": False, "gae_lambda": 1.0})
    other = Reinforce.of(AlgorithmConfig.model_validate(settings))
    row = measured(penalty_M=torch.zeros(8).double(), values_M=torch.zeros(8).double())
    logps = OLD.clone().requires_grad_()
    (result,), _ = advantages_of(algorithm, row)
    (ours,) = torch.autograd.grad(algorithm.objective(logps, row, result.values, 8.0).loss, logps)
    (theirs,) = torch.autograd.grad(other.objective(logps, row, row.rewards_N, 8.0).loss, logps)
    assert torch.allclose(ours, theirs, rtol=1e-12, atol=0) and theirs.any()


def test_rows_of_other_processes_count_in_the_whitening() -> None:
    """Two processes, each with a part of the row, come to what one process comes to."""
    whole, of_whole = advantages_of(ppo(unfinished="keep"), measured())
    parts = [cut(measured(), slice(0, 5), slice(0, 2)), cut(measured(), slice(5, 8), slice(2, 4))]
    together, heard = threading.Barrier(2), [torch.zeros(()), torch.zeros(())]

    def process(number: int) -> tuple[list[Advantages], dict[str, float]]:
        def total(values: Tensor) -> Tensor:
            together.wait()  # the sum before has been taken by both
            heard[number] = values
            together.wait()
            return heard[0] + heard[1]

        return ppo(unfinished="keep").compute_advantages([parts[number]], total)

    with ThreadPoolExecutor(2) as pool:
        (first, figures), (second, others) = pool.map(process, range(2))
    assert torch.allclose(torch.cat([first[0].values, second[0].values]), whole[0].values)
    assert as_floats(figures) == as_floats(others) == pytest.approx(of_whole)
