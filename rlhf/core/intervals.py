"""The interval of a share that was counted. No torch here: the report uses it too."""

from __future__ import annotations

import math

Z_95 = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""


def wilson_interval(share: float, count: float) -> list[float]:
    """The 95 % Wilson score interval `[low, high]` of a share seen in `count` trials.

    centre = (p + z^2/2n) / (1 + z^2/n), half width = z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n), z = 1.96.
    For a weighted mean pass Kish's effective count, (sum w)^2 / sum w^2.

    Source: Wilson (1927), "Probable inference, the law of succession, and statistical inference".
    """
    scale = 1 + Z_95**2 / count
    centre = (share + Z_95**2 / (2 * count)) / scale
    half = Z_95 * math.sqrt(share * (1 - share) / count + Z_95**2 / (4 * count**2)) / scale
    # Rounding may push an end beyond 0, 1 or the share itself.
    return [min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))]
