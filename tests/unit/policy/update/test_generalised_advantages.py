"""What a token is worth: rewards of tokens, generalised advantages, moments over processes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from policy.update.advantages import generalised_advantages, mean_and_variance, token_rewards

ANSWER = torch.tensor([0, 0, 0, 1, 1, 2])

answers = st.lists(st.integers(1, 5), min_size=1, max_size=5)


def test_the_reward_comes_with_the_last_token_and_the_penalty_with_each() -> None:
    penalty = torch.tensor([0.5, -1.0, 2.0, 0.25, 0.0, 1.0])
    result = token_rewards(torch.tensor([10.0, 20.0, 30.0]), penalty, ANSWER)
    assert result.tolist() == [-0.5, 1.0, 8.0, -0.25, 20.0, 29.0]


def test_generalised_advantages_by_hand() -> None:
    rewards = torch.tensor([1.0, 0.0, 4.0, 0.5, 3.0, -2.0])
    values = torch.tensor([2.0, 1.0, 3.0, 4.0, -1.0, 0.5])
    # With discount 1/2 and lambda 1/2, so that what follows counts a quarter. Nothing is expected after an
    # answer:
    #   first   deltas 1 + 1/2 - 2, 0 + 3/2 - 1, 4 - 3     = -0.5, 0.5, 1
    #   second  deltas 0.5 - 1/2 - 4, 3 + 1                = -4, 4
    #   third   delta  -2 - 0.5                            = -2.5
    expected = [-0.5 + 0.5 / 4 + 1 / 16, 0.5 + 1 / 4, 1.0, -4 + 4 / 4, 4.0, -2.5]
    assert generalised_advantages(rewards, values, ANSWER, 0.5, 0.5).tolist() == expected


def drawn(lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, values and the answer of each token."""
    generator = torch.Generator().manual_seed(seed)
    answer = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    rewards, values = torch.randn(2, len(answer), generator=generator, dtype=torch.double)
    return rewards, values, answer


@given(answers)
def test_lambda_1_is_what_came_without_what_was_expected(lengths: list[int]) -> None:
    rewards, values, answer = drawn(lengths)
    came = torch.cat([item.flip(0).cumsum(0).flip(0) for item in rewards.split(lengths)])
    assert torch.allclose(generalised_advantages(rewards, values, answer, 1.0, 1.0), came - values)


@given(answers, st.floats(0, 1))
def test_lambda_0_looks_at_the_next_value_alone(lengths: list[int], discount: float) -> None:
    rewards, values, answer = drawn(lengths)
    following = torch.cat([torch.cat([item[1:], item.new_zeros(1)]) for item in values.split(lengths)])
    expected = rewards + discount * following - values
    assert torch.allclose(generalised_advantages(rewards, values, answer, discount, 0.0), expected)


@given(answers, st.floats(0, 1), st.floats(0, 1))
def test_the_definition(lengths: list[int], discount: float, gae_lambda: float) -> None:
    """The double sum, answer by answer."""
    rewards, values, answer = drawn(lengths)
    expected = []
    for r, v in zip(rewards.split(lengths), values.split(lengths), strict=True):
        after = [*v.tolist(), 0.0]
        deltas = [r[t].item() + discount * after[t + 1] - after[t] for t in range(len(r))]
        expected += [
            sum((discount * gae_lambda) ** (later - t) * deltas[later] for later in range(t, len(r)))
            for t in range(len(r))
        ]
    result = generalised_advantages(rewards, values, answer, discount, gae_lambda)
    assert torch.allclose(result, torch.tensor(expected, dtype=torch.double), atol=1e-9)


def test_long_answers_agree_with_the_recursion() -> None:
    """A_t = delta_t + discount lambda A_{t+1}, backwards through each answer."""
    lengths, discount, gae_lambda = [700, 1, 300], 0.99, 0.95
    rewards, values, answer = drawn(lengths)
    expected: list[float] = []
    for r, v in zip(rewards.split(lengths), values.split(lengths), strict=True):
        later, next_value, backwards = 0.0, 0.0, list[float]()
        for reward, value in zip(reversed(r.tolist()), reversed(v.tolist()), strict=True):
            later = reward + discount * next_value - value + discount * gae_lambda * later
            next_value = value
            backwards.append(later)
        expected += backwards[::-1]
    result = generalised_advantages(rewards, values, answer, discount, gae_lambda)
    assert torch.allclose(result, torch.tensor(expected, dtype=torch.double), rtol=1e-12, atol=1e-12)


def test_a_value_that_is_not_finite_stays_in_its_answer() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, math.inf, 1.0, 2.0])
    result = generalised_advantages(torch.zeros(6), values, ANSWER, 1.0, 0.95)
    assert result.isfinite().tolist() == [True, True, True, False, True, True]


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(3, 1\)"):
        generalised_advantages(torch.zeros(3), torch.zeros(3, 1), torch.zeros(3), 1.0, 1.0)


def test_moments_are_those_of_all_processes() -> None:
    here, there = torch.tensor([1.0, 4.0]), torch.tensor([-2.0, 3.0, 9.0])
    together = torch.cat([here, there])
    mean = 15 / 5

    def total(values: Tensor) -> Tensor:
        """What the other process adds: first its count and sum, then its squares."""
        return values + (torch.tensor([3.0, 10.0]) if values.shape else (there - mean).square().sum())

    counted = torch.tensor([True, False, True])
    result = mean_and_variance(torch.tensor([1.0, math.nan, 4.0]), counted, total)
    assert [value.item() for value in result] == pytest.approx([mean, together.var(correction=0).item()])


def test_moments_of_nothing_and_of_large_numbers() -> None:
    none = torch.zeros(0)
    assert mean_and_variance(none, none.bool(), lambda values: values) == (0.0, 0.0)
    large = 1e6 + torch.tensor([-1.0, 1.0])
    _, variance = mean_and_variance(large, torch.ones(2).bool(), lambda values: values)
    assert variance.item() == pytest.approx(1.0)
