"""Compare policies at the same KL: scale an adapter until it has the target KL, and interpolate.

A policy's path runs from the base (scale 0) to the trained adapter (scale 1) and beyond: at scale s its
weight update is s dW. For small s the KL grows as s^2, since it is 0 with gradient 0 at s = 0.

Shapes: P prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlhf.core.statistics import Floats


@dataclass(frozen=True, slots=True)
class Point:
    """The figures of one policy at one KL, for each prompt.

    `scale` is the factor on the adapter; for best of n it is n.
    """

    scale: float
    kl: float
    figures: Mapping[str, Floats]


def next_scale(
    points: Sequence[tuple[float, float]], kl: float, *, tolerance: float, max_scale: float
) -> float | None:
    """The scale to try next, or None: a point is close enough, or the target KL is out of reach.

    Between two points s^2 is taken as linear in the KL. Beyond the last point it is s sqrt(kl / KL(s)), at
    most `max_scale`.

    Args:
        points: (scale, KL) of the scales tried so far; (0, 0) is added.
        kl: the target KL.
        tolerance: relative distance of a point that is close enough.
        max_scale: the largest scale.
    """
    if any(abs(reached - kl) <= tolerance * kl for _, reached in points):
        return None
    path = sorted([(0.0, 0.0), *points])
    above = next((number for number, (_, reached) in enumerate(path) if reached > kl), None)
    if above is None:
        scale, reached = path[-1]
        if scale >= max_scale:
            return None
        return min(max_scale, scale * (min(math.sqrt(kl / reached), 2.0) if reached > 0 else 2.0))
    (low, before), (high, after) = path[above - 1], path[above]
    before = max(before, 0.0)  # an estimate of a small KL may be negative
    return math.sqrt(low**2 + (high**2 - low**2) * (kl - before) / (after - before))


def at_kl(points: Sequence[Point], kl: float, *, tolerance: float) -> Point | None:
    """The figures of each prompt where the path first reaches a KL; None if it does not.

    Interpolated linearly in the KL between the two points around it. If the largest KL is below the target by
    at most the fraction `tolerance`, the last point is returned.
    """
    path = sorted(points, key=lambda point: point.scale)
    above = next((number for number, point in enumerate(path) if point.kl >= kl), None)
    if above is None:
        last = path[-1]
        return last if last.kl >= (1 - tolerance) * kl else None
    if above == 0:
        return path[0] if path[0].kl <= kl else None
    low, high = path[above - 1], path[above]
    weight = (kl - low.kl) / (high.kl - low.kl)
    return Point(
        low.scale + weight * (high.scale - low.scale),
        kl,
        {name: (1 - weight) * low.figures[name] + weight * high.figures[name] for name in low.figures},
    )


def as_point(scale: float, kl: float, figures: Mapping[str, Sequence[float]]) -> Point:
    """A point from the numbers of a file."""
    return Point(scale, kl, {name: np.array(values, dtype=np.float64) for name, values in figures.items()})
