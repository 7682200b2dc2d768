"""The estimator of best-of-n against all subsets, and its curve by hand."""

from __future__ import annotations

import itertools
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward.evaluation.best_of_n import Rated, best_of_all, best_of_n_curve, expected_pick, pair_accuracy

ANSWERS = st.lists(st.tuples(st.integers(0, 3), st.integers(-5, 5)), min_size=1, max_size=7)


def test_by_hand() -> None:
    # Of three answers, the pairs pick 1, 3 and 3; the best by true score are 5, 5 and 3.
    rewards, scores = (1.0, 2.0, 3.0), (5.0, 1.0, 3.0)
    assert [expected_pick(rewards, scores, n) for n in (1, 2, 3)] == pytest.approx([3, 7 / 3, 3])
    assert expected_pick(scores, scores, 2) == pytest.approx(13 / 3)


@given(ANSWERS, st.data())
def test_it_is_the_mean_over_all_subsets(answers: list[tuple[int, int]], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(answers)))

    def picked(subset: tuple[tuple[int, int], ...]) -> float:
        best = max(reward for reward, _ in subset)
        return statistics.fmean(score for reward, score in subset if reward == best)

    expected = statistics.fmean(map(picked, itertools.combinations(answers, n)))
    rewards, scores = zip(*answers, strict=True)
    assert expected_pick(rewards, scores, n) == pytest.approx(expected, abs=1e-9)


@given(ANSWERS)
def test_one_is_random_and_all_is_the_best(answers: list[tuple[int, int]]) -> None:
    rewards, scores = zip(*answers, strict=True)
    assert expected_pick(rewards, scores, 1) == pytest.approx(statistics.fmean(scores))
    assert expected_pick(scores, scores, len(scores)) == max(scores)


def test_many_answers_do_not_overflow() -> None:
    values = [float(i) for i in range(4000)]
    # The best of n out of 0..N-1 is n (N + 1) / (n + 1) - 1 on average.
    assert expected_pick(values, values, 2000) == pytest.approx(2000 * 4001 / 2001 - 1)


@pytest.mark.parametrize("n", [0, 3])
def test_more_than_there_are_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"{n} of 2"):
        expected_pick([1.0, 2.0], [1.0, 2.0], n)


def test_the_curve() -> None:
    rated = [Rated((1.0, 2.0, 3.0), (5.0, 1.0, 3.0)), Rated((1.0, 2.0), (0.0, 4.0))]
    first, two, three = best_of_n_curve(rated)
    assert [(row["n"], row["prompts"]) for row in (first, two, three)] == [(1, 2), (2, 2), (3, 1)]
    assert (first["score"], first["random"], first["oracle"], first["share"]) == (2.5, 2.5, 2.5, None)
    # (7/3 + 4) / 2 picked, (3 + 2) / 2 at random, (13/3 + 4) / 2 at best.
    assert two["score"] == pytest.approx(19 / 6)
    assert two["gain"] == pytest.approx(19 / 6 - 5 / 2)
    assert two["share"] == pytest.approx((19 / 6 - 15 / 6) / (25 / 6 - 15 / 6))
    assert (three["random"], three["ci95"], three["gain_ci95"]) == (3.0, None, None)


def test_the_pick_among_all_answers_counts_every_prompt() -> None:
    """One prompt of 51 has twice the answers: it alone has the largest n of the curve."""
    right, wrong = (
        Rated((1.0, 2.0, 3.0, 4.0), (0.0, 0.0, 0.0, 1.0)),
        Rated((8.0, *range(7)), (0.0,) * 7 + (1.0,)),
    )
    rated = [right] * 50 + [wrong]
    assert (best_of_n_curve(rated)[-1]["prompts"], best_of_n_curve(rated)[-1]["score"]) == (1, 0.0)
    figures = best_of_all(rated)
    assert (figures["prompts"], figures["score"], figures["oracle"]) == (51, 50 / 51, 1.0)
    assert figures["random"] == pytest.approx((50 / 4 + 1 / 8) / 51)
    low, high = figures["ci95"]
    assert 0.9 < low < high == 1.0


def test_a_flipped_model_loses_what_the_right_one_gains() -> None:
    scores = (0.0, 1.0, 2.0, 3.0)
    right = best_of_n_curve([Rated(scores, scores)] * 3)
    wrong = best_of_n_curve([Rated(tuple(-x for x in scores), scores)] * 3)
    assert [row["gain"] for row in right] == pytest.approx([-row["gain"] for row in wrong])
    assert right[-1]["share"] == 1


def test_pairs_in_order() -> None:
    # First prompt: 5 > 1 wrong, 5 > 3 wrong, 3 > 1 right; second: a tie of the reward is wrong; third: no
    # such pair.
    rated = [
        Rated((1.0, 2.0, 3.0), (5.0, 1.0, 3.0)),
        Rated((1.0, 1.0), (0.0, 1.0)),
        Rated((1.0, 2.0), (4.0, 4.0)),
    ]
    result = pair_accuracy(rated)
    assert (result["accuracy"], result["prompts"]) == (pytest.approx(1 / 6), 2)
    assert pair_accuracy(rated[2:]) == {"accuracy": None, "prompts": 0, "ci95": None}
