"""Distribution of lengths in tokens: quantiles, a histogram, and the number above a limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
BARS = 10


@dataclass(frozen=True, slots=True)
class Bar:
    """How many lengths lie in `start <= length < end`; the last bar has no end."""

    start: int
    end: int | None
    count: int


@dataclass(frozen=True, slots=True)
class Lengths:
    """The distribution of some lengths; `longer` is how many pass `limit`."""

    count: int
    total: int
    quantiles: dict[str, int]
    histogram: list[Bar]
    limit: int
    longer: int


def lengths_of(values: Sequence[int], limit: int) -> Lengths:
    """The distribution of lengths, of which there is at least one."""
    ordered = sorted(values)
    return Lengths(
        count=len(ordered),
        total=sum(ordered),
        quantiles={f"{100 * share:g}%": quantile(ordered, share) for share in QUANTILES},
        histogram=histogram(ordered),
        limit=limit,
        longer=sum(value > limit for value in ordered),
    )


def quantile(ordered: Sequence[int], share: float) -> int:
    """The smallest of the ordered values that at least this share of them does not pass."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def histogram(ordered: Sequence[int]) -> list[Bar]:
    """About `BARS` bars of one round width up to the 99 % quantile, and one bar for all above it."""
    width = _round_up(max(1, quantile(ordered, 0.99)) / BARS)
    closed = quantile(ordered, 0.99) // width + 1
    counts = [0] * (closed + 1)
    for value in ordered:
        counts[min(value // width, closed)] += 1
    bars = [Bar(i * width, (i + 1) * width, count) for i, count in enumerate(counts[:-1])]
    return [*bars, Bar(closed * width, None, counts[-1])] if counts[-1] else bars


def _round_up(value: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ..."""
    size = int(10 ** math.floor(math.log10(max(1.0, value))))
    return next(size * step for step in (1, 2, 5, 10) if size * step >= value)
