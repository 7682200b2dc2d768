from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from policy.update.advantages import aligner_advantage, apply_unfinished_rule, leave_one_out

groups = st.integers(2, 6).flatmap(
    lambda size: st.lists(
        st.lists(st.floats(-100, 100), min_size=size, max_size=size), min_size=1, max_size=4
    )
)


def all_counted(rewards: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(rewards, dtype=torch.bool)


def test_by_hand() -> None:
    rewards = torch.tensor([[1.0, 3.0, 8.0], [0.0, 0.0, 3.0]])
    # 1 - (3+8)/2, 3 - (1+8)/2, 8 - (1+3)/2; and 0 - 1.5, 0 - 1.5, 3 - 0.
    expected = [[-4.5, -1.5, 6.0], [-1.5, -1.5, 3.0]]
    assert leave_one_out(rewards, all_counted(rewards)).tolist() == expected


def test_what_does_not_count_is_in_no_baseline_and_has_no_advantage() -> None:
    rewards = torch.tensor([[1.0, math.nan, 8.0], [5.0, math.inf, math.nan]])
    counted = torch.tensor([[True, False, True], [True, False, False]])
    # 1 - 8 and 8 - 1; the one answer of the second group has no sibling to be compared with.
    assert leave_one_out(rewards, counted).tolist() == [[-7.0, 0.0, 7.0], [0.0, 0.0, 0.0]]


def test_a_group_of_one_has_nothing_to_compare_with() -> None:
    rewards = torch.tensor([[4.0], [-1.0]])
    assert leave_one_out(rewards, all_counted(rewards)).tolist() == [[0.0], [0.0]]


@given(groups)
def test_the_advantages_of_a_group_sum_to_zero(values: list[list[float]]) -> None:
    rewards = torch.tensor(values, dtype=torch.double)
    advantages = leave_one_out(rewards, all_counted(rewards))
    assert advantages.sum(dim=1).abs().max() < 1e-9
    # The other form of the same: G / (G - 1) times the distance from the mean of all.
    size = rewards.shape[1]
    distance = rewards - rewards.mean(dim=1, keepdim=True)
    assert torch.allclose(advantages, distance * size / (size - 1), atol=1e-9)


@given(groups, st.floats(-50, 50))
def test_a_constant_added_to_a_group_changes_nothing(values: list[list[float]], constant: float) -> None:
    rewards = torch.tensor(values, dtype=torch.double)
    counted = all_counted(rewards)
    assert torch.allclose(
        leave_one_out(rewards, counted), leave_one_out(rewards + constant, counted), atol=1e-9
    )


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(2, 1\)"):
        leave_one_out(torch.zeros(2, 3), torch.ones(2, 1, dtype=torch.bool))


def test_aligners_advantage_by_hand() -> None:
    rewards = torch.tensor([[1.0, 3.0, 8.0, 5.0], [2.0, 7.0, 1.0, 0.0], [4.0, 4.0, 9.0, 1.0]])
    finished = torch.tensor([[True, True, True, False], [False, True, False, False], [False] * 4])
    expected = [
        # Finished: against the two others. Cut off: the sum of three finished ones divided by 3 - 1.
        [1 - (3 + 8) / 2, 3 - (1 + 8) / 2, 8 - (1 + 3) / 2, 5 - (1 + 3 + 8) / 2],
        [0.0] * 4,  # one finished: the baseline is the reward
        [0.0] * 4,
    ]
    assert aligner_advantage(rewards, finished).tolist() == expected
    all_finished = torch.ones_like(finished)
    assert torch.equal(aligner_advantage(rewards, all_finished), leave_one_out(rewards, all_finished))


def test_the_rule_for_unfinished_answers() -> None:
    rewards, finished = torch.tensor([1.0, 2.0]), torch.tensor([True, False])
    for rule, worth, counted in (
        ("drop", [1.0, 2.0], [True, False]),
        ("keep", [1.0, 2.0], [True, True]),
        ("penalty", [1.0, -3.0], [True, True]),
    ):
        result = apply_unfinished_rule(rewards, finished, rule, -3.0)  # type: ignore[arg-type]
        assert [item.tolist() for item in result] == [worth, counted]
