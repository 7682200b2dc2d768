"""Wilson's interval."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.core.statistics import wilson_interval


@given(st.floats(0, 1), st.integers(1, 10_000))
def test_the_bounds_are_where_the_normal_test_just_accepts(share: float, count: int) -> None:
    # By definition both bounds solve (share - p)^2 = z^2 p (1 - p) / n.
    low, high = wilson_interval(share, count)
    assert 0 <= low <= share <= high <= 1
    for bound in (low, high):
        assert (share - bound) ** 2 == pytest.approx(
            1.959964**2 * bound * (1 - bound) / count, rel=1e-4, abs=1e-9
        )


def test_all_right_has_a_lower_bound_and_none_right_an_upper_one() -> None:
    # Of n right out of n: low = n / (n + z^2).
    assert wilson_interval(1.0, 10) == [pytest.approx(10 / (10 + 1.959964**2)), 1.0]
    assert wilson_interval(0.0, 10) == [0.0, pytest.approx(1.959964**2 / (10 + 1.959964**2))]
