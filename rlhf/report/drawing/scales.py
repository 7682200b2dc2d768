"""Axes: from values to coordinates, and round tick values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps `low..high` to `start..end`, linearly or by logarithm; values outside are clipped."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The coordinate of a value, to a tenth."""
        low, high, value = (
            (math.log(x) for x in (self.low, self.high, max(value, self.low)))
            if self.log
            else (self.low, self.high, value)
        )
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return round(self.start + share * (self.end - self.start), 1)

    def holds(self, value: float) -> bool:
        """Whether the value is within the axis."""
        return self.low <= value <= self.high


def bounds(values: Sequence[float], *, zero: bool = False) -> tuple[float, float]:
    """The limits of a linear axis: all values with a margin, without outliers that would flatten the rest.

    An outlier is further from the middle 96 % of the values than twice their range. From eight values on, the
    middle leaves out at least one at each end.
    """
    ordered = sorted(values)
    edge = max(1, round(0.02 * (len(ordered) - 1))) if len(ordered) >= 8 else 0
    inner_low, inner_high = ordered[edge], ordered[-1 - edge]
    reach = 2 * (inner_high - inner_low)
    low = ordered[0] if reach == 0 else max(ordered[0], inner_low - reach)
    high = ordered[-1] if reach == 0 else min(ordered[-1], inner_high + reach)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        room = abs(low) / 2 or 1.0
        return low - room, high + room
    air = 0.06 * (high - low)
    return low if zero and low == 0 else low - air, high if zero and high == 0 else high + air


def round_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten between two ends, `count` or fewer."""
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def step_ticks(low: float, high: float) -> list[float]:
    """Round ticks for step numbers, which are integers."""
    return sorted({float(round(tick)) for tick in round_ticks(low, high, 6) if tick == round(tick)})


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two ends; if they are few, also 2 and 5 times them."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if len(powers) > 4 else (1, 3) if len(powers) > 3 else (1, 2, 5)
    return [tick for power in powers for f in factors if low <= (tick := f * 10.0**power) <= high]
