"""Comparisons of a group, their scores, and the bias towards a position; expected values by hand."""

from __future__ import annotations

import math

import pytest

from reward.judge.forms import JudgeVerdict
from reward.judge.groups import comparisons, group_scores, position_bias, scores_of


def test_pairs_of_a_group() -> None:
    assert comparisons(3, "circle", "one") == [(0, 1), (1, 2), (2, 0)]
    assert comparisons(2, "circle", "one") == [(0, 1)]
    assert comparisons(3, "all", "one") == [(0, 1), (0, 2), (1, 2)]
    assert comparisons(2, "all", "both") == [(0, 1), (1, 0)]
    assert len(comparisons(4, "circle", "both")) == 8
    with pytest.raises(ValueError, match="1"):
        comparisons(1, "all", "both")


def test_a_ranking_decides_between_equal_scores_alone() -> None:
    assert scores_of(JudgeVerdict(4, 2, 6)) == (4, 2)
    assert scores_of(JudgeVerdict(3, 3, 1)) == (3.5, 2.5)
    assert scores_of(JudgeVerdict(3, 3, 6)) == (2.5, 3.5)
    first, second = scores_of(JudgeVerdict(3, 3, 3))
    assert (first, second) == pytest.approx((3.1, 2.9))


def test_scores_are_means_over_the_comparisons_that_were_read() -> None:
    verdicts = {(0, 1): JudgeVerdict(5, 1, 1), (1, 2): JudgeVerdict(3, 4, 5), (2, 0): None}
    assert group_scores(3, verdicts) == [5.0, 2.0, 4.0]
    assert group_scores(2, {(0, 1): None}) == [None, None]


def test_position_bias() -> None:
    fair = {(0, 1): JudgeVerdict(5, 1, 1), (1, 0): JudgeVerdict(1, 5, 6)}
    assert position_bias([fair]) == (0.0, 1.0)
    first_wins = {(0, 1): JudgeVerdict(5, 3, 1), (1, 0): JudgeVerdict(4, 1, 1)}
    assert position_bias([first_wins]) == (2.5, 0.0)
    assert position_bias([fair, first_wins]) == (1.25, 0.5)
    assert all(math.isnan(value) for value in position_bias([{(0, 1): JudgeVerdict(5, 1, 1), (1, 0): None}]))
