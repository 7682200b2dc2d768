"""Confidence intervals and fits, based on scipy.stats. Imports no torch, as the report uses it.

All intervals are 95 %. Bootstrap intervals are percentile intervals, and a call with the same seed gives the
same interval.

Shapes: S clusters (prompts) of a stratum, Q figures, R resamples, K weighted observations.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

Floats = npt.NDArray[np.float64]
Interval = list[float]
"""`[low, high]`."""

LEVEL = 0.95
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
RESAMPLES = 2000
BATCH_VALUES = 4_000_000
"""Number of resampled values held in memory at once."""


def wilson_interval(share: float, count: float) -> Interval:
    """Wilson score interval of a share observed in `count` trials.

        centre = (p + z^2/2n) / (1 + z^2/n)
        half width = z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n),   z = 1.96

    For a weighted mean, or clustered trials, pass their `effective_count`. (scipy's `proportion_ci` takes
    whole counts only.)

    Source: Wilson (1927), "Probable inference, the law of succession, and statistical inference".
    """
    z = float(stats.norm.ppf(TAILS[1]))
    scale = 1 + z**2 / count
    centre = (share + z**2 / (2 * count)) / scale
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / scale
    # Rounding may push an end beyond 0, 1 or the share itself.
    return [min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))]


def effective_count(
    weights: Sequence[float], residuals: Sequence[float], clusters: Sequence[Hashable]
) -> float:
    """Effective sample size of a weighted mean over clustered trials.

        n = (sum w)^2 / sum w^2 / max(1, deff)
        deff = sum_c (sum_{i in c} w_i e_i)^2 / sum_i (w_i e_i)^2 * (C / (C - 1)) / (N / (N - 1))

    Pairs that share a prompt are right or wrong together more often than others. The design effect deff is
    the variance of the mean over C clusters in relation to that over N trials; 1 where every cluster has one
    trial. It cannot be estimated from one cluster, nor without residuals: then a cluster counts as one trial.

    Args:
        weights: w, of each trial.
        residuals: e, each trial's value minus the mean.
        clusters: such as the prompt of each trial.

    Source: Kish (1965), "Survey Sampling", sections 5.4 and 8.2.
    """
    size_C: dict[Hashable, float] = defaultdict(float)
    sum_C: dict[Hashable, float] = defaultdict(float)
    for weight, residual, cluster in zip(weights, residuals, clusters, strict=True):
        size_C[cluster] += weight
        sum_C[cluster] += weight * residual
    total, C, N = math.fsum(weights), len(size_C), len(weights)
    alone = math.fsum((w * e) ** 2 for w, e in zip(weights, residuals, strict=True))
    if alone == 0 or C == 1:
        return total**2 / math.fsum(size**2 for size in size_C.values())
    effect = math.fsum(value**2 for value in sum_C.values()) / alone * (C / (C - 1)) / (N / (N - 1))
    return total**2 / math.fsum(weight**2 for weight in weights) / max(1.0, effect)


def stratified_count(weights: Sequence[float], shares: Sequence[float], counts: Sequence[float]) -> float:
    """Effective sample size of a weighted mean of shares, each observed in its own number of trials.

        n = m (1 - m) / sum_h w_h^2 q_h (1 - q_h) / n_h
        m = sum_h w_h q_h,   q_h = (p_h n_h + 1/2) / (n_h + 1)

    The size at which a single share would have the variance of the mean; n_1 where there is one stratum. The
    variance takes q, the mean of the posterior of Jeffreys' prior, in place of p: a few trials that are all
    right still leave their share uncertain.

    Args:
        weights: w, of each stratum, of sum 1.
        shares: p, of each stratum.
        counts: n, the (effective) number of trials of each stratum.

    Source: Cochran (1977), "Sampling Techniques", chapter 5, on the variance of a stratified mean.
    """
    smooth = [(share * count + 0.5) / (count + 1) for share, count in zip(shares, counts, strict=True)]
    mean = math.fsum(weight * share for weight, share in zip(weights, smooth, strict=True))
    variance = math.fsum(
        weight**2 * share * (1 - share) / count
        for weight, share, count in zip(weights, smooth, counts, strict=True)
    )
    return mean * (1 - mean) / variance


def overlap_effect(
    weights: Sequence[float],
    residuals: Sequence[float],
    clusters: Sequence[Hashable],
    strata: Sequence[Hashable],
) -> float:
    """Design effect of clusters that have trials in several strata; at least 1, and 1 where none has.

        max(1, sum_c (sum_{i in c} w_i e_i)^2 / sum_c sum_h (sum_{i in c, h} w_i e_i)^2)

    The variance of a weighted mean in relation to that of independent strata. Without residuals, all are 1.
    """
    if not any(weight * residual for weight, residual in zip(weights, residuals, strict=True)):
        residuals = [1.0] * len(residuals)
    sum_C: dict[Hashable, float] = defaultdict(float)
    sum_CH: dict[Hashable, float] = defaultdict(float)
    for weight, residual, cluster, stratum in zip(weights, residuals, clusters, strata, strict=True):
        sum_C[cluster] += weight * residual
        sum_CH[cluster, stratum] += weight * residual
    apart = math.fsum(value**2 for value in sum_CH.values())
    return max(1.0, math.fsum(value**2 for value in sum_C.values()) / apart) if apart else 1.0


def claim_verdict(low: float, high: float) -> str:
    """What an interval of a difference says of the claim that it is positive.

    It holds where the interval lies above zero, does not hold where it lies below, and is open otherwise.
    """
    return "holds" if low > 0 else "does not hold" if high < 0 else "open"


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Student's t interval of a mean over independent values, such as seeds; None for a single value.

        mean +- t s / sqrt(n),   t of n - 1 degrees of freedom

    Source: Student (1908), "The probable error of a mean".
    """
    if len(values) < 2:
        return None
    half = stats.t.ppf(TAILS[1], len(values) - 1) * stats.sem(values)
    mean = math.fsum(values) / len(values)
    return [float(mean - half), float(mean + half)]


def bootstrap_means(
    strata: Sequence[npt.ArrayLike], *, resamples: int = RESAMPLES, seed: int = 0
) -> list[Interval | None]:
    """Bootstrap intervals of the means of Q figures, clustered by prompt and stratified.

    Each stratum has one row of Q figures per prompt (shape S, Q). A resample draws S rows with replacement
    within each stratum; a figure's mean is the unweighted mean of the strata's means. All figures of a
    resample come from the same rows, so a paired difference is passed as one of the Q figures.

    Returns:
        One interval per figure; None where no stratum has two prompts.

    Source: Efron and Tibshirani (1993), "An Introduction to the Bootstrap", chapter 13.
    """
    tables = [np.asarray(stratum, dtype=np.float64).T for stratum in strata]
    drawn = [table_QS for table_QS in tables if table_QS.shape[1] > 1]
    if not drawn:
        return [None] * len(tables[0])

    def sum_of_means(*samples: Floats, axis: int) -> Floats:
        total: Floats = np.sum([sample.mean(axis=axis) for sample in samples], axis=0)
        return total

    fixed_Q = np.sum([table_QS[:, 0] for table_QS in tables if table_QS.shape[1] == 1], axis=0)
    sums_QR = bootstrap_distribution(drawn, sum_of_means, resamples=resamples, seed=seed)
    means_RQ = (sums_QR.T + fixed_Q) / len(tables)
    return [percentile_interval(means_R) for means_R in means_RQ.T]


def grid_mean_interval(
    values_SP: Floats,
    clusters_P: Sequence[int] | None = None,
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Interval:
    """Interval of the mean of a grid, over its rows (seeds) and its columns (pairs) at once.

        mean +- t sqrt(V_S + V_C)
        degrees of freedom of t: (V_S + V_C)^2 / (V_S^2 / (S - 1) + V_C^2 / (C - 1))
        V_S = variance of the means of the S rows / S
        V_C = C / (C - 1) x sum over clusters c of (sum over columns p in c of (mean_p - mean))^2 / P^2

    The noise of a single value is in both variances, so that the interval is rather too wide than too narrow.
    A two-way bootstrap has (S - 1) / S of the rows' variance and normal tails: too narrow for a few rows that
    differ. A single row leaves the columns alone, a single cluster the rows; with one of each the interval is
    the mean.

    Args:
        clusters_P: the cluster of each column, such as its prompt; None: every column is its own.
        bounds: the least and the largest mean there can be, such as 0 and 1 of a share.

    Source: Satterthwaite (1946), "An approximate distribution of estimates of variance components"; Owen
    (2007), arXiv 0712.1111, for the sum of both variances.
    """
    S, P = values_SP.shape
    mean, columns_P = float(values_SP.mean()), values_SP.mean(axis=0)
    names, cluster_P = np.unique(range(P) if clusters_P is None else clusters_P, return_inverse=True)
    parts = []
    if S > 1:
        parts.append((float(values_SP.mean(axis=1).var(ddof=1)) / S, S - 1))
    if (C := len(names)) > 1:
        sums_C = np.bincount(cluster_P, weights=columns_P - mean)
        parts.append((C / (C - 1) * float(sums_C @ sums_C) / P**2, C - 1))
    variance = math.fsum(part for part, _ in parts)
    if variance == 0:
        return [mean, mean]
    freedom = variance**2 / math.fsum(part**2 / free for part, free in parts)
    half = float(stats.t.ppf(TAILS[1], freedom)) * math.sqrt(variance)
    return [max(bounds[0], mean - half), min(bounds[1], mean + half)]


def bootstrap_weights(
    statistic: Callable[[Floats], float], clusters: int, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Bootstrap interval, over clusters, of any statistic that takes the number of times each cluster was
    drawn.

    Resamples for which the statistic is NaN (nothing to compute it from) are left out.
    """

    def of_draw(drawn_S: npt.NDArray[np.int64]) -> float:
        return statistic(np.bincount(drawn_S, minlength=clusters).astype(np.float64))

    values_R = bootstrap_distribution(
        [np.arange(clusters)], of_draw, vectorized=False, resamples=resamples, seed=seed
    )
    return percentile_interval(values_R)


def bootstrap_distribution(
    samples: Sequence[npt.NDArray[np.float64] | npt.NDArray[np.int64]],
    statistic: Callable[..., object],
    *,
    vectorized: bool = True,
    resamples: int,
    seed: int,
) -> Floats:
    """The statistic of every resample, drawn along the last axis of each sample independently; resamples come
    last."""
    size = sum(sample.size for sample in samples)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # NaN: see bootstrap_weights
        result = stats.bootstrap(
            samples,
            statistic,
            n_resamples=resamples,
            batch=max(1, BATCH_VALUES // size),
            vectorized=vectorized,
            axis=-1,
            method="percentile",
            rng=seed,
        )
    distribution: Floats = result.bootstrap_distribution
    return distribution


def percentile_interval(values_R: Floats) -> Interval:
    """The 2.5 % and 97.5 % quantiles, NaN left out."""
    low, high = np.nanquantile(values_R, TAILS)
    return [float(low), float(high)]


ROOT_BOUND = 1e-8
"""Largest gradient at the solution of `fit_logistic`, relative to the sum of its weights."""


def fit_logistic(
    feature_K: Floats,
    target_K: Floats,
    weight_K: Floats,
    *,
    ridge: float,
    start: tuple[float, float] = (0.0, 0.0),
) -> tuple[float, float]:
    """Intercept c and slope s of a weighted logistic regression with a ridge penalty on both.

        minimise  sum_k weight_k crossentropy(target_k, sigmoid(c + s feature_k)) + ridge / 2 (c^2 + s^2)

    Solved as the root of the gradient, which is unique: the objective is strictly convex.

    Raises:
        ArithmeticError: the solver did not converge.
    """
    design_K2 = np.stack([np.ones_like(feature_K), feature_K], axis=1)

    def gradient(at_2: Floats) -> tuple[Floats, Floats]:
        p_K = 1 / (1 + np.exp(-design_K2 @ at_2))
        hessian_22 = (design_K2.T * (weight_K * p_K * (1 - p_K))) @ design_K2 + ridge * np.eye(2)
        return ridge * at_2 - design_K2.T @ (weight_K * (target_K - p_K)), hessian_22

    solution = optimize.root(gradient, start, jac=True, tol=1e-10)
    # The gradient decides: at the precision of a float the solver reports that it makes no progress.
    if not np.abs(gradient(solution.x)[0]).max() <= ROOT_BOUND * (ridge + weight_K.sum()):
        raise ArithmeticError(f"logistic regression did not converge: {solution.message}")
    intercept, slope = solution.x
    return float(intercept), float(slope)
