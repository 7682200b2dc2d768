"""From the points of a metric to what is drawn: segments, fewer points, a running mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

Point = tuple[float, float]

POINT_LIMIT = 240
"""Maximum number of points of a series; with more, neighbours are averaged."""
SMOOTH_FROM = 12
"""Series with fewer points are joined without smoothing."""


@dataclass(frozen=True, slots=True)
class Series:
    """One named line of a chart: (step, value) pairs in order of steps; `exact` ones have no noise to
    smooth.
    """

    name: str
    points: Sequence[Point]
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """A segment without a break: its points and the line through them."""

    points: list[Point]
    line: list[Point]
    smoothed: bool


def parts(
    series: Series, starts: Sequence[float] = (), limits: tuple[float, float] = (-math.inf, math.inf)
) -> list[Part]:
    """Split at `starts` (the first step of each stage), thin and smooth; no mean crosses a stage.

    For the line, values are clipped to `limits`, so that one outlier does not bend a whole segment.
    """
    edges = [-math.inf, *starts, math.inf]
    cut = [[point for point in series.points if low <= point[0] < high] for low, high in pairwise(edges)]
    share = min(1.0, POINT_LIMIT / max(1, len(series.points)))
    return [
        _part(thin(stretch, max(8, int(share * len(stretch)))), limits, exact=series.exact)
        for stretch in cut
        if stretch
    ]


def _part(points: list[Point], limits: tuple[float, float], *, exact: bool) -> Part:
    smoothed = len(points) >= SMOOTH_FROM and not exact
    values = [min(limits[1], max(limits[0], y)) for _, y in points]
    values = running_mean(values) if smoothed else values
    return Part(points, [(x, y) for (x, _), y in zip(points, values, strict=True)], smoothed)


def thin(points: Sequence[Point], limit: int) -> list[Point]:
    """At most `limit` points, each the mean of equally many neighbours (the last of the remainder)."""
    size = math.ceil(len(points) / limit) if points else 1
    bins = [points[start : start + size] for start in range(0, len(points), size)]
    return [(fmean(x for x, _ in bin_), fmean(y for _, y in bin_)) for bin_ in bins]


def running_mean(values: Sequence[float]) -> list[float]:
    """A centred mean with Gaussian weights; the standard deviation is 1/25 of the points, at least 1.5.

    mean_i = sum_j w_ij v_j / sum_j w_ij,   w_ij = exp(-(i - j)^2 / 2 s^2)
    """
    width = max(1.5, len(values) / 25)
    reach = math.ceil(3 * width)
    weights = [math.exp(-(offset**2) / (2 * width**2)) for offset in range(reach + 1)]
    means = []
    for middle in range(len(values)):
        near = range(max(0, middle - reach), min(len(values), middle + reach + 1))
        total = sum(weights[abs(middle - j)] for j in near)
        means.append(sum(weights[abs(middle - j)] * values[j] for j in near) / total)
    return means
