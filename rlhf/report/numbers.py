"""Numbers as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"


def finite(value: Any) -> float | None:
    """The value as a float if it is a finite number, else None; booleans count as 0 and 1."""
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    return None


def fixed(value: float, decimals: int) -> str:
    """`1234.5` as `1,234.5`, with a true minus sign and no negative zero."""
    rounded = round(value, decimals)
    return f"{rounded if rounded else 0.0:,.{decimals}f}".replace("-", MINUS)


def signed(value: float, decimals: int) -> str:
    """Like `fixed`, with a plus sign before positive numbers."""
    text = fixed(value, decimals)
    return f"+{text}" if round(value, decimals) > 0 else text


def decimals_for(size: float) -> int:
    """Decimals that show a quantity of this size with two significant digits (0 to 4)."""
    if size <= 0:
        return 2
    return min(4, max(0, 1 - math.floor(math.log10(size))))


def short(value: float) -> str:
    """Three significant digits; in powers of ten only below 0.001 and from a million on."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3 or abs(value) >= 1e6:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}".replace("-", MINUS)
    return fixed(value, max(0, 2 - math.floor(math.log10(abs(value)))))


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Labels for round numbers: all digits, or powers of ten if all are small or some are large."""
    largest = max((abs(tick) for tick in ticks), default=0.0)
    if 0 < largest < 1e-3 or largest >= 1e6:
        return [short(tick) for tick in ticks]
    return [f"{tick:,.6f}".rstrip("0").rstrip(".").replace("-", MINUS) for tick in ticks]


def percent(share: float, decimals: int = 1) -> str:
    """`0.673` as `67.3 %`."""
    return f"{fixed(100 * share, decimals)}\N{NO-BREAK SPACE}%"


def duration(seconds: float) -> str:
    """Seconds as `38 s`, `12 min` or `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
