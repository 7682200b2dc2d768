"""Intervals by drawing the prompts again: what is asked of one prompt belongs together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
SEED = 0


def bootstrap_means(strata: Sequence[npt.ArrayLike]) -> list[list[float] | None]:
    """95 % percentile bootstrap intervals of Q means, over prompts, always from the same seed.

    Each stratum holds one row of Q figures a prompt (shape S, Q). A resample draws as many prompts as there are, with
    replacement, within each stratum; a figure's mean is the plain mean of the strata's means. All figures of a
    resample come from the same prompts, so that a difference of two figures may be one of the Q.

    Returns:
        `[low, high]` for each figure; None where no stratum has two prompts, and there is nothing to draw from.

    Source: Efron and Tibshirani (1993), "An Introduction to the Bootstrap", chapter 13.
    """
    tables = [np.asarray(stratum, dtype=np.float64) for stratum in strata]
    figures = tables[0].shape[1]
    if all(len(table) < 2 for table in tables):
        return [None] * figures
    draw = np.random.default_rng(SEED)
    means_RQ = np.zeros((RESAMPLES, figures))
    for table_SQ in tables:
        for resample in range(RESAMPLES):
            means_RQ[resample] += table_SQ[draw.integers(0, len(table_SQ), len(table_SQ))].mean(axis=0)
    ends_2Q = np.quantile(means_RQ / len(tables), (0.025, 0.975), axis=0)
    return [[float(low), float(high)] for low, high in ends_2Q.T]
