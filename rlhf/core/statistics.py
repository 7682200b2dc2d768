"""The interval of a share that was counted, and of a mean over few runs. No torch here: the report uses it too."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

STUDENT_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""The 97.5 % quantile of Student's t distribution for 1, 2, ... 30 degrees of freedom."""

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


def mean_interval(values: Sequence[float]) -> list[float] | None:
    """The 95 % interval `[low, high]` of a mean over a few independent values, such as seeds; None for a single one.

        mean +- t s / sqrt(n), t of n - 1 degrees of freedom (of 30 at most, which errs on the wide side)

    Source: Student (1908), "The probable error of a mean".
    """
    if len(values) < 2:
        return None
    quantile = STUDENT_95[min(len(values) - 1, len(STUDENT_95)) - 1]
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return [mean - half, mean + half]
