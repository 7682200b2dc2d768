"""Ensembles, and several rewards that are each normalised over their group: expected values by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from policy.rewards.ensemble import EnsembleReward, combined
from policy.rewards.protocol import Missing, RewardResult, group_sizes
from policy.rewards.shaping import Shaping
from policy.rewards.weighted import EPSILON, WeightedRewards, WeightedTerm, group_normalised
from policy.update.sampling import RolloutBatch, score_rollouts
from rlhf.config.rewards import ShapingConfig
from rlhf.core.records import Message, Prompt, Rollout

PROMPTS = [Prompt((Message("user", "same text"),)) for _ in range(2)]
FOUR = [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]]
ROLLOUTS = [Rollout((1,), (5,), (), True, "x")] * 4


class Fixed:
    def __init__(self, *values: float | Missing) -> None:
        self.values = list(values)

    def of(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> list[float | Missing]:
        return self.values


def test_rules_of_an_ensemble() -> None:
    rewards_KN = torch.tensor([[1.0, 4.0], [3.0, 4.0]])
    assert combined(rewards_KN, "mean", 9.0).tolist() == [2.0, 4.0]
    assert combined(rewards_KN, "lower-bound", 0.5).tolist() == [1.5, 4.0]
    assert combined(rewards_KN, "worst", 9.0).tolist() == [1.0, 4.0]


def test_an_ensemble_reports_its_spread_and_invents_nothing() -> None:
    source = EnsembleReward([Fixed(1.0, 2.0, Missing("too long")), Fixed(3.0, 2.0, 5.0)], "lower-bound", 1.0)
    rewards = source.of(FOUR[:3], ROLLOUTS[:3])
    assert rewards == [1.0, 2.0, Missing("too long")]
    assert source.figures() == {"reward/spread": 0.5}


def test_an_ensemble_of_which_no_answer_is_scored() -> None:
    source = EnsembleReward([Fixed(Missing("a")), Fixed(Missing("b"))], "mean", 1.0)
    assert (source.of(FOUR[:1], ROLLOUTS[:1]), source.figures()) == ([Missing("a")], {})


def test_groups_are_normalised_by_themselves() -> None:
    scale = 1 / (1 + EPSILON)
    assert group_normalised([1.0, 3.0, 10.0, 10.0], [2, 2]) == pytest.approx([-scale, scale, 0.0, 0.0])
    values = group_normalised([1.0, math.nan, 3.0], [3])
    assert (values[0], values[2]) == pytest.approx((-scale, scale))
    assert math.isnan(values[1])


def test_a_large_scale_does_not_drown_the_others() -> None:
    """Source `a` is 1000 times as large; normalised, both count as their weights say."""
    parts = [
        WeightedTerm("a", 1.0, Fixed(0.0, 1000.0, 0.0, 0.0)),
        WeightedTerm("b", 2.0, Fixed(1.0, 0.0, 0.0, 2.0)),
    ]
    result = WeightedRewards(parts, "error", normalise_each=True).of(FOUR, ROLLOUTS)
    assert result.rewards == [2.0, 1000.0, 0.0, 4.0], "the log keeps the bare sum"
    a, b, c = 0.5 * 1000 / (500 + EPSILON), 0.5 / (0.5 + EPSILON), 1 / (1 + EPSILON)
    expected = [-a + 2 * b, a - 2 * b, -2 * c, 2 * c]
    assert result.decoupled == pytest.approx(expected)
    shaping = Shaping(ShapingConfig(normalise="each"))
    assert shaping.of(result, [1] * 4) == pytest.approx(expected)


def test_a_missing_part_is_missing_in_both_sums() -> None:
    parts = [
        WeightedTerm("a", 1.0, Fixed(Missing("no"), 1.0, 2.0, 3.0)),
        WeightedTerm("b", 1.0, Fixed(1.0, 2.0, 3.0, 4.0)),
    ]
    result = WeightedRewards(parts, "drop", normalise_each=True).of(FOUR, ROLLOUTS)
    assert result.known == [False, True, True, True]
    assert result.decoupled is not None
    assert math.isnan(result.decoupled[0])


def test_without_the_setting_there_is_no_second_sum() -> None:
    result = WeightedRewards([WeightedTerm("a", 1.0, Fixed(1.0))], "error").of(FOUR[:1], ROLLOUTS[:1])
    assert isinstance(result, RewardResult)
    assert result.decoupled is None


class Reported(Fixed):
    def __init__(self, **figures: float) -> None:
        super().__init__(0.0)
        self.reported = {f"judge/{name}": value for name, value in figures.items()}

    def figures(self) -> dict[str, float]:
        return self.reported


def test_counts_and_costs_of_several_judges_are_summed_and_rates_averaged() -> None:
    first = Reported(requests=40, dollars=5.0, position_bias=0.25)
    second = Reported(requests=2, dollars=0.01, seconds=3.0)
    terms = [WeightedTerm("a", 1.0, first), WeightedTerm("b", 1.0, second)]
    figures = WeightedRewards(terms, "error").of(FOUR[:1], ROLLOUTS[:1]).figures
    assert figures == {
        "judge/requests": 42,
        "judge/dollars": pytest.approx(5.01),
        "judge/position_bias": 0.25,
        "judge/seconds": 3.0,
    }


def test_two_draws_of_one_prompt_are_two_groups() -> None:
    """At the seam of two passes over the prompts the same one may be drawn twice in a row."""
    terms = [WeightedTerm("a", 1.0, Fixed(0.0, 1.0, 10.0, 11.0))]
    held_out = WeightedRewards([WeightedTerm("h", 1.0, Reported4(dollars=2.0))], "error")
    batch = RolloutBatch([ROLLOUTS[:2], ROLLOUTS[2:]], {})
    experience = score_rollouts(
        batch, [PROMPTS[0], PROMPTS[0]], WeightedRewards(terms, "error", normalise_each=True), held_out
    )
    assert group_sizes(experience.prompts) == [2, 2] and experience.prompts == [PROMPTS[0]] * 4
    scale = 0.5 / (0.5 + EPSILON)
    assert experience.result.decoupled == pytest.approx([-scale, scale, -scale, scale])
    assert experience.times["held_out/judge/dollars"] == 2.0 and "judge/dollars" not in experience.times


class Reported4(Reported):
    def of(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> list[float | Missing]:
        return [0.0] * len(rollouts)
