"""Accuracy by preference strength and by relative length, and the distribution of the rewards."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rlhf.core.statistics import effective_count, wilson_interval

HISTOGRAM_BINS = 24
QUANTILES = {"min": 0.0, "p05": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}


Outcome = tuple[float, Hashable]
"""1 for a right pair or 0 for a wrong one, and its prompt: pairs of one prompt are not independent."""


def shares(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """`{"accuracy", "count", "ci95"}` of some pairs; accuracy and interval are None where there are none."""
    if not outcomes:
        return {"accuracy": None, "count": 0, "ci95": None}
    count = len(outcomes)
    accuracy = sum(right for right, _ in outcomes) / count
    residuals = [right - accuracy for right, _ in outcomes]
    effective = effective_count([1.0] * count, residuals, [prompt for _, prompt in outcomes])
    return {"accuracy": accuracy, "count": count, "ci95": wilson_interval(accuracy, effective)}


def by_strength(outcomes: Sequence[Outcome], strengths: Sequence[int | None]) -> dict[str, dict[str, Any]]:
    """`{"1": shares, "2": ..., "3": ...}` of the pairs whose strength is known, the weakest first."""
    known = sorted({strength for strength in strengths if strength is not None})
    return {
        str(level): shares(
            [outcome for outcome, strength in zip(outcomes, strengths, strict=True) if strength == level]
        )
        for level in known
    }


def by_group(
    outcomes: Iterable[Outcome], groups: Iterable[Mapping[str, str]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """`{group: {value: shares}}`, as of HelpSteer3 domain and language, by the pairs that have the group."""
    table: dict[str, dict[str, list[Outcome]]] = {}
    for outcome, pair_groups in zip(outcomes, groups, strict=True):
        for name, value in pair_groups.items():
            table.setdefault(name, {}).setdefault(value, []).append(outcome)
    return {
        name: {value: shares(table[name][value]) for value in sorted(table[name])} for name in sorted(table)
    }


def by_length(outcomes: Sequence[Outcome], chosen: Sequence[int], rejected: Sequence[int]) -> dict[str, Any]:
    """Accuracy where the better answer is the shorter, the longer, or of the same length, in characters.

        controlled = (accuracy where it is shorter + accuracy where it is longer) / 2

    A judge of nothing but length has a controlled accuracy of 1/2, however often the better answer is the
    longer one; it is None where either kind of pair is missing.

    Returns:
        `{"shorter": shares, "longer": shares, "same": shares, "controlled": x}`.
    """
    groups: dict[str, list[Outcome]] = {"shorter": [], "longer": [], "same": []}
    for outcome, better, worse in zip(outcomes, chosen, rejected, strict=True):
        groups["shorter" if better < worse else "longer" if better > worse else "same"].append(outcome)
    table: dict[str, Any] = {name: shares(group) for name, group in groups.items()}
    shorter, longer = table["shorter"]["accuracy"], table["longer"]["accuracy"]
    table["controlled"] = None if shorter is None or longer is None else (shorter + longer) / 2
    return table


def score_distribution(chosen: Sequence[float], rejected: Sequence[float]) -> dict[str, Any]:
    """Quantiles and a common histogram of the rewards of the better and of the worse answers.

    The bins are of equal width from the 0.5 % to the 99.5 % quantile of all rewards; the two end bins also
    hold what lies beyond, so that every reward is counted and a single outlier does not flatten the picture.

    Returns:
        `{"chosen": {"mean", "std", "min", "p05", "p25", "median", "p75", "p95", "max"}, "rejected": {...},
        "histogram": {"edges": [HISTOGRAM_BINS + 1 numbers], "chosen": [counts], "rejected": [counts]}}`.
    """
    low, high = np.quantile([*chosen, *rejected], (0.005, 0.995)).tolist()
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, HISTOGRAM_BINS + 1)
    answers = {"chosen": np.asarray(chosen, np.float64), "rejected": np.asarray(rejected, np.float64)}
    counts = {
        name: np.histogram(np.clip(rewards, low, high), edges)[0].tolist()
        for name, rewards in answers.items()
    }
    return {
        **{name: _summary(rewards) for name, rewards in answers.items()},
        "histogram": {"edges": edges.tolist(), **counts},
    }


def _summary(rewards: npt.NDArray[np.float64]) -> dict[str, float]:
    quantiles = np.quantile(rewards, list(QUANTILES.values())).tolist()
    moments = {"mean": float(rewards.mean()), "std": float(rewards.std())}
    return moments | dict(zip(QUANTILES, quantiles, strict=True))
