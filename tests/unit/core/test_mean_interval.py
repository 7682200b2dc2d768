from __future__ import annotations

import statistics

import pytest

from rlhf.core.statistics import mean_interval


def test_a_mean_of_few_has_students_interval() -> None:
    assert mean_interval([1.0]) is None
    # One degree of freedom: t = 12.706, s = sqrt(2) for 1 and 3, so that t s / sqrt(2) = 12.706.
    assert mean_interval([1.0, 3.0]) == pytest.approx([2 - 12.706, 2 + 12.706])
    values = [0.0, 1.0, 2.0, 5.0]
    half = 3.182 * statistics.stdev(values) / 2
    assert mean_interval(values) == pytest.approx([2 - half, 2 + half])


def test_many_values_take_the_last_quantile() -> None:
    values = [float(n % 2) for n in range(100)]
    low, high = mean_interval(values) or (0.0, 0.0)
    assert (high - low) / 2 == pytest.approx(2.042 * statistics.stdev(values) / 10)
