from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.annotations import NEITHER_VALID, aggregate, overall, three_most_similar

choices = st.sampled_from([-3, -2, -1, 1, 2, 3])
annotations = st.lists(choices, min_size=3, max_size=5)


def spread(strengths: tuple[int, ...]) -> int:
    return max(strengths) - min(strengths)


@pytest.mark.parametrize(
    ("strengths", "triple", "strength"),
    [
        ([2, 2, 2], (2, 2, 2), 2),
        ([3, 1, 1, -3, 2], (1, 1, 2), 1),  # spread 1 is the least; 4/3 rounds to 1
        ([-3, -2, -3], (-3, -2, -3), -3),  # -8/3 rounds to -3
        ([1, 1, 2, 3, 3], (1, 1, 2), 1),  # (2, 3, 3) is as tight and as close to the median 2: the first wins
        ([3, 3, 2, 1, 1], (3, 3, 2), 3),  # the same votes the other way round
        # Spread 2 three times; the sums of |s + 1| are 4, 2 and 2: the first triple loses, then order
        # decides.
        ([-3, -3, -1, -1, 1], (-3, -1, -1), -2),
        ([2, NEITHER_VALID, 3, 2], (2, 3, 2), 2),
    ],
)
def test_the_three_most_similar_make_one_strength(
    strengths: list[int], triple: tuple[int, ...], strength: int
) -> None:
    assert three_most_similar(strengths) == triple
    assert overall(triple) == strength
    assert aggregate(strengths, max_spread=2).strength == strength


@pytest.mark.parametrize(
    ("strengths", "reason"),
    [
        ([-3, 1, 3], "annotators disagree (spread > 2)"),
        ([-1, 1, 1], "tie (strength 0)"),  # spread 2 is allowed; 1/3 rounds to 0
        ([2, 2], "fewer than three valid annotations"),
        ([2, 2, NEITHER_VALID, NEITHER_VALID], "fewer than three valid annotations"),
        ([], "fewer than three valid annotations"),
    ],
)
def test_a_pair_without_a_strength_has_a_reason(strengths: list[int], reason: str) -> None:
    result = aggregate(strengths, max_spread=2)
    assert (result.strength, result.reason) == (None, reason)


def test_max_spread_is_the_largest_allowed() -> None:
    assert aggregate([1, 3, 3], max_spread=2).strength == 2
    assert aggregate([1, 3, 3], max_spread=1).reason == "annotators disagree (spread > 1)"


def test_fewer_than_three_have_no_triple() -> None:
    with pytest.raises(ValueError, match="2"):
        three_most_similar([1, 2, NEITHER_VALID])


@given(annotations)
def test_no_other_triple_is_tighter(strengths: list[int]) -> None:
    triple = three_most_similar(strengths)
    assert len(triple) == 3
    assert not Counter(triple) - Counter(strengths)
    assert spread(triple) == min(map(spread, itertools.combinations(strengths, 3)))


@given(annotations, st.integers(0, 6))
def test_a_strength_is_a_rounded_mean_within_bounds_or_has_a_reason(
    strengths: list[int], max_spread: int
) -> None:
    triple, result = three_most_similar(strengths), aggregate(strengths, max_spread)
    assert (result.strength is None) == bool(result.reason)
    if spread(triple) > max_spread:
        assert "disagree" in result.reason
    elif result.strength is None:
        assert abs(sum(triple) / 3) < 0.5
    else:
        assert result.strength in (-3, -2, -1, 1, 2, 3)
        assert abs(sum(triple) / 3 - result.strength) < 0.5


@given(annotations, st.integers(0, 6))
def test_swapping_the_responses_swaps_the_sign(strengths: list[int], max_spread: int) -> None:
    there = aggregate(strengths, max_spread)
    back = aggregate([-strength for strength in strengths], max_spread)
    assert back.reason == there.reason
    assert back.strength == (None if there.strength is None else -there.strength)


@given(annotations, st.integers(0, 5))
def test_an_invalid_mark_changes_nothing(strengths: list[int], position: int) -> None:
    marked = [*strengths[:position], NEITHER_VALID, *strengths[position:]]
    assert three_most_similar(marked) == three_most_similar(strengths)
