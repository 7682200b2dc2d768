"""Intervals against their definitions: Wilson, Student, bootstrap; and the logistic fit."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rlhf.core.statistics import (
    bootstrap_means,
    bootstrap_weights,
    claim_verdict,
    effective_count,
    fit_logistic,
    grid_mean_interval,
    mean_interval,
    overlap_effect,
    stratified_count,
    wilson_interval,
)


@given(st.floats(0, 1), st.integers(1, 10_000))
def test_the_bounds_are_where_the_normal_test_just_accepts(share: float, count: int) -> None:
    # By definition both bounds solve (share - p)^2 = z^2 p (1 - p) / n.
    low, high = wilson_interval(share, count)
    assert 0 <= low <= share <= high <= 1
    for bound in (low, high):
        assert (share - bound) ** 2 == pytest.approx(
            1.959964**2 * bound * (1 - bound) / count, rel=1e-4, abs=1e-9
        )


def test_all_right_has_a_lower_bound_and_none_right_an_upper_one() -> None:
    # Of n right out of n: low = n / (n + z^2).
    assert wilson_interval(1.0, 10) == [pytest.approx(10 / (10 + 1.959964**2)), 1.0]
    assert wilson_interval(0.0, 10) == [0.0, pytest.approx(1.959964**2 / (10 + 1.959964**2))]


def test_trials_of_their_own_count_as_kish_says() -> None:
    assert effective_count([1.0] * 4, [0.5, -0.5, 0.5, -0.5], range(4)) == 4
    assert effective_count([3.0, 1.0], [0.5, -0.5], "ab") == pytest.approx(16 / 10)


def test_copies_of_a_trial_count_once_and_opposites_never_more_than_alone() -> None:
    residuals, clusters = np.repeat([0.5, -0.5], 300).tolist(), np.repeat(range(200), 3).tolist()
    assert effective_count([1.0] * 600, residuals, clusters) == pytest.approx(200, rel=0.01)
    assert effective_count([1.0] * 4, [0.5, -0.5, 0.5, -0.5], "aabb") == 4
    assert effective_count([1.0] * 6, [0.0] * 6, "aaabbb") == pytest.approx(2)  # all right, or all wrong
    assert effective_count([1.0] * 4, [0.5, -0.5, 0.5, -0.5], "aaaa") == 1


def test_the_interval_of_clustered_trials_covers_as_often_as_it_says() -> None:
    """40 prompts with 5 pairs each, right together with a probability that varies by prompt."""
    draw = np.random.default_rng(0)
    covered = {"clustered": 0, "independent": 0}
    for _ in range(400):
        chances = draw.beta(0.7, 0.3, size=40)  # mean 0.7
        right = (draw.random((40, 5)) < chances[:, None]).ravel()
        mean = float(right.mean())
        count = effective_count([1.0] * 200, (right - mean).tolist(), np.repeat(range(40), 5).tolist())
        for name, worth in (("clustered", count), ("independent", 200.0)):
            low, high = wilson_interval(mean, worth)
            covered[name] += low <= 0.7 <= high
    assert 0.92 <= covered["clustered"] / 400 <= 0.98
    assert covered["independent"] / 400 < 0.8


def test_a_mean_of_strata_has_the_variance_of_its_strata() -> None:
    assert stratified_count([1.0], [0.8], [50.0]) == pytest.approx(50)
    assert stratified_count([0.5, 0.5], [0.7, 0.7], [30.0, 30.0]) == pytest.approx(60)
    # q = (5 + 1/2) / 11 = 1/2 and (10 + 1/2) / 11 = 21/22, of ten trials each.
    variance = (0.5**2 * 0.25 + 0.5**2 * 21 / 22**2) / 10
    mean = (1 / 2 + 21 / 22) / 2
    assert stratified_count([0.5, 0.5], [0.5, 1.0], [10, 10]) == pytest.approx(mean * (1 - mean) / variance)


@pytest.mark.parametrize(
    ("chances", "sizes"),
    [
        ([0.5, 0.98, 0.98, 0.98], [20, 300, 300, 300]),
        ([0.97, 0.6, 0.6, 0.6], [30, 300, 300, 300]),
        ([0.7, 0.7, 0.7, 0.7], [100, 100, 100, 100]),
    ],
)
def test_the_interval_of_a_mean_of_strata_covers_as_often_as_it_says(
    chances: list[float], sizes: list[int]
) -> None:
    """Strata of unequal size and accuracy: a count by weights alone would cover 86 % and 99.8 %."""
    draw, covered = np.random.default_rng(0), 0
    for _ in range(2000):
        shares = (draw.binomial(sizes, chances) / sizes).tolist()
        low, high = wilson_interval(sum(shares) / 4, stratified_count([0.25] * 4, shares, sizes))
        covered += low <= sum(chances) / 4 <= high
    assert 0.92 <= covered / 2000 <= 0.97


def test_a_cluster_in_two_strata_is_one_trial_of_both() -> None:
    residuals, strata = [0.5, -0.5, 0.5, -0.5], "aabb"
    assert overlap_effect([0.25] * 4, residuals, [1, 2, 3, 4], strata) == 1
    assert overlap_effect([0.25] * 4, residuals, [1, 2, 1, 2], strata) == 2  # copies
    assert overlap_effect([0.25] * 4, residuals, [1, 2, 2, 1], strata) == 1  # opposites: never less
    assert overlap_effect([0.25] * 4, [0.0] * 4, [1, 2, 1, 2], strata) == 2  # all right
    assert overlap_effect([0.25] * 4, residuals, [1, 1, 2, 2], strata) == 1  # a cluster of one stratum


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [((0.1, 0.2), "holds"), ((-0.2, -0.1), "does not hold"), ((-0.1, 0.2), "open"), ((0.0, 0.2), "open")],
)
def test_a_claim_is_open_unless_its_interval_leaves_zero_out(
    interval: tuple[float, float], verdict: str
) -> None:
    assert claim_verdict(*interval) == verdict


def test_a_mean_of_few_values_has_students_interval() -> None:
    assert mean_interval([1.0]) is None
    # One degree of freedom: t = 12.706, s = sqrt(2) for 1 and 3, so that t s / sqrt(2) = 12.706.
    assert mean_interval([1.0, 3.0]) == pytest.approx([2 - 12.7062, 2 + 12.7062], rel=1e-5)
    values = [0.0, 1.0, 2.0, 5.0]
    half = 3.182446 * statistics.stdev(values) / 2
    assert mean_interval(values) == pytest.approx([2 - half, 2 + half], rel=1e-5)
    assert mean_interval([2.0, 2.0, 2.0]) == [2.0, 2.0]


def test_a_mean_of_many_values_has_nearly_the_normal_interval() -> None:
    values = [float(n % 2) for n in range(10_000)]
    low, high = mean_interval(values) or (0.0, 0.0)
    assert (high - low) / 2 == pytest.approx(1.96 * 0.5 / 100, rel=1e-3)


def test_the_bootstrap_agrees_with_the_standard_error() -> None:
    values = np.random.default_rng(1).normal(3, 2, 400)
    (interval,) = bootstrap_means([values[:, None]])
    assert interval is not None
    error = values.std() / 20
    assert interval == pytest.approx([values.mean() - 1.96 * error, values.mean() + 1.96 * error], abs=0.03)
    assert bootstrap_means([values[:, None]]) == [interval]  # the seed is fixed


def test_strata_count_alike_and_are_not_mixed() -> None:
    # Constant within each stratum: no resample differs. Pooled, the mean would be 3/4 and would vary.
    assert bootstrap_means([[[0.0], [0.0]], [[1.0]] * 6]) == [[0.5, 0.5]]
    assert bootstrap_means([[[1.0, 2.0]]]) == [None, None]
    # A stratum of one prompt is the same in every resample: here it moves both ends by 10 / 2.
    (alone,), (beside,) = bootstrap_means([[[0.0], [1.0]]]), bootstrap_means([[[0.0], [1.0]], [[10.0]]])
    assert alone is not None and beside == pytest.approx([(end + 10) / 2 for end in alone])


def test_paired_figures_are_drawn_together() -> None:
    """The interval of a difference passed as a figure: constant within each prompt, so no resample
    differs."""
    before = np.random.default_rng(0).normal(size=30)
    *_, difference = bootstrap_means([np.stack([before, before + 0.5, np.full(30, 0.5)], axis=1)])
    assert difference == [0.5, 0.5]


def test_the_bootstrap_approaches_all_possible_draws() -> None:
    values = [0.1, -0.4, 0.9, 0.3, 0.2, -0.1]
    means = [sum(draw) / 6 for draw in itertools.product(values, repeat=6)]
    (interval,) = bootstrap_means([[[value] for value in values]], resamples=10_000)
    assert interval == pytest.approx(np.percentile(means, [2.5, 97.5]).tolist(), abs=0.02)


def test_resamples_without_a_value_are_left_out() -> None:
    """A share among three of a hundred clusters: some resamples draw none of the three."""
    eligible, right = np.arange(100) < 3, np.arange(100) < 2

    def share(weight_S: np.ndarray) -> float:
        return float(weight_S[right].sum() / total) if (total := weight_S[eligible].sum()) else math.nan

    low, high = bootstrap_weights(share, 100)
    assert (low, high) == (0.0, 1.0)


def test_the_interval_of_a_grid_counts_pairs_and_seeds() -> None:
    generator = np.random.default_rng(1)
    alike_SP = np.tile(generator.integers(0, 2, 400).astype(float), (3, 1))
    mean = alike_SP.mean()
    # Seeds that agree leave the pairs alone, of sample variance p (1 - p) P / (P - 1).
    half = stats.t.ppf(0.975, 399) * np.sqrt(mean * (1 - mean) / 399)
    assert grid_mean_interval(alike_SP) == pytest.approx([mean - half, mean + half])
    assert grid_mean_interval(alike_SP[:1]) == pytest.approx([mean - half, mean + half])
    uneven_SP = np.concatenate([np.ones((1, 400)), np.zeros((1, 400))])
    # Two seeds with opposite results: t = 12.706 of one degree of freedom, times a standard error of 1/2.
    assert grid_mean_interval(uneven_SP) == pytest.approx([0.5 - 6.3531, 0.5 + 6.3531], abs=1e-4)
    assert grid_mean_interval(uneven_SP, bounds=(0.0, 1.0)) == [0.0, 1.0]
    assert grid_mean_interval(uneven_SP[:1]) == [1.0, 1.0]
    # Rows (0, 1, 2, 3) and (2, 3, 4, 5): V_S = 2 / 2 and V_C = (5 / 3) / 4, of 1 and 3 degrees of freedom.
    grid_SP = np.array([[0.0, 1, 2, 3], [2, 3, 4, 5]])
    variance = 1 + 5 / 12
    half = stats.t.ppf(0.975, variance**2 / (1 + (5 / 12) ** 2 / 3)) * np.sqrt(variance)
    assert grid_mean_interval(grid_SP) == pytest.approx([2.5 - half, 2.5 + half])
    # Four copies of each of 100 columns are worth 100.
    copies_SP, copied = np.repeat(alike_SP[:, :100], 4, axis=1), np.repeat(range(100), 4).tolist()
    assert grid_mean_interval(copies_SP, copied) == pytest.approx(grid_mean_interval(alike_SP[:, :100]))


@pytest.mark.parametrize(("seeds", "spread"), [(3, 0.0), (3, 0.1), (2, 0.05)])
def test_the_interval_of_a_grid_covers_as_often_as_it_says(seeds: int, spread: float) -> None:
    """96 pairs, judged by seeds that differ by `spread`. The two-way bootstrap covers 84 % of the second."""
    draw, covered, runs = np.random.default_rng(0), 0, 1000
    for _ in range(runs):
        grid_SP = (
            draw.normal(0, spread, (seeds, 1)) + draw.normal(0, 0.1, 96) + draw.normal(0, 0.3, (seeds, 96))
        )
        low, high = grid_mean_interval(grid_SP)
        covered += low <= 0 <= high
    assert covered / runs >= 0.91


@pytest.mark.parametrize("ridge", [0.1, 2.0])
def test_the_gradient_of_the_logistic_fit_is_zero(ridge: float) -> None:
    generator = np.random.default_rng(0)
    feature, target = generator.normal(size=40), generator.choice([0.0, 0.5, 1.0], 40)
    weight = generator.uniform(0.5, 2.0, 40)
    intercept, slope = fit_logistic(feature, target, weight, ridge=ridge)
    residual = weight * (target - 1 / (1 + np.exp(-(intercept + slope * feature))))
    assert residual.sum() == pytest.approx(ridge * intercept, abs=1e-8)
    assert (residual * feature).sum() == pytest.approx(ridge * slope, abs=1e-8)


def test_the_logistic_fit_does_not_depend_on_its_start() -> None:
    feature, target = np.linspace(-1, 1, 50), np.ones(50)  # separable: the ridge alone keeps it finite
    fits = [
        fit_logistic(feature, target, np.full(50, 10.0), ridge=0.1, start=start)
        for start in ((0.0, 0.0), (8.0, -3.0))
    ]
    assert fits[0] == pytest.approx(fits[1], abs=1e-6)
