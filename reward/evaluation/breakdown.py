"""What one accuracy hides: where the rewards lie, how strong the preferences are, which answer is the longer one."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import Any

from rlhf.core.statistics import wilson_interval

HISTOGRAM_BINS = 24
QUANTILES = {"min": 0.0, "p05": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}


def shares(correct: Sequence[bool]) -> dict[str, Any]:
    """`{"accuracy", "count", "ci95"}` of some pairs; accuracy and interval are None where there are none."""
    if not correct:
        return {"accuracy": None, "count": 0, "ci95": None}
    accuracy = sum(correct) / len(correct)
    return {"accuracy": accuracy, "count": len(correct), "ci95": wilson_interval(accuracy, len(correct))}


def by_strength(correct: Sequence[bool], strengths: Sequence[int | None]) -> dict[str, dict[str, Any]]:
    """`{"1": shares, "2": ..., "3": ...}` of the pairs whose strength is known, the weakest first."""
    known = sorted({strength for strength in strengths if strength is not None})
    return {
        str(level): shares([right for right, one in zip(correct, strengths, strict=True) if one == level])
        for level in known
    }


def by_length(correct: Sequence[bool], chosen: Sequence[int], rejected: Sequence[int]) -> dict[str, Any]:
    """Accuracy where the better answer is the shorter, the longer, or of the same length, in characters.

        controlled = (accuracy where it is shorter + accuracy where it is longer) / 2

    A judge of nothing but length has a controlled accuracy of 1/2, however often the better answer is the
    longer one; it is None where either kind of pair is missing.

    Returns:
        `{"shorter": shares, "longer": shares, "same": shares, "controlled": x}`.
    """
    groups: dict[str, list[bool]] = {"shorter": [], "longer": [], "same": []}
    for right, better, worse in zip(correct, chosen, rejected, strict=True):
        groups["shorter" if better < worse else "longer" if better > worse else "same"].append(right)
    table: dict[str, Any] = {name: shares(group) for name, group in groups.items()}
    shorter, longer = table["shorter"]["accuracy"], table["longer"]["accuracy"]
    table["controlled"] = None if shorter is None or longer is None else (shorter + longer) / 2
    return table


def score_distribution(chosen: Sequence[float], rejected: Sequence[float]) -> dict[str, Any]:
    """Quantiles and a common histogram of the rewards of the better and of the worse answers.

    The bins are of equal width from the 0.5 % to the 99.5 % quantile of all rewards; the two end bins also hold what
    lies beyond, so that every reward is counted and a single outlier does not flatten the picture.

    Returns:
        `{"chosen": {"mean", "std", "min", "p05", "p25", "median", "p75", "p95", "max"}, "rejected": {...},
        "histogram": {"edges": [HISTOGRAM_BINS + 1 numbers], "chosen": [counts], "rejected": [counts]}}`.
    """
    both = sorted([*chosen, *rejected])
    low, high = quantile(both, 0.005), quantile(both, 0.995)
    if low == high:
        low, high = low - 0.5, high + 0.5
    width = (high - low) / HISTOGRAM_BINS
    edges = [low + place * width for place in range(HISTOGRAM_BINS)] + [high]
    histogram: dict[str, list[float] | list[int]] = {"edges": edges}
    summaries = {}
    for name, rewards in (("chosen", chosen), ("rejected", rejected)):
        counts = [0] * HISTOGRAM_BINS
        for reward in rewards:
            counts[min(HISTOGRAM_BINS - 1, max(0, bisect.bisect_right(edges, reward) - 1))] += 1
        histogram[name] = counts
        summaries[name] = _summary(sorted(rewards))
    return {**summaries, "histogram": histogram}


def quantile(ordered: Sequence[float], share: float) -> float:
    """A quantile of numbers in rising order, between its two neighbours linearly (numpy's default)."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def _summary(ordered: Sequence[float]) -> dict[str, float]:
    mean = math.fsum(ordered) / len(ordered)
    spread = math.sqrt(math.fsum((reward - mean) ** 2 for reward in ordered) / len(ordered))
    return {
        "mean": mean,
        "std": spread,
        **{name: quantile(ordered, share) for name, share in QUANTILES.items()},
    }
