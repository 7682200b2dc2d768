from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.lengths import Bar, histogram, lengths_of, quantile


@pytest.mark.parametrize(("share", "value"), [(0, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (1, 9)])
def test_a_quantile_is_one_of_the_values(share: float, value: int) -> None:
    assert quantile([1, 2, 3, 9], share) == value


def test_bars_have_one_round_width_and_the_tail_a_bar_of_its_own() -> None:
    values = [*range(200), 1000]
    assert histogram(values) == [
        *(Bar(20 * i, 20 * i + 20, 20) for i in range(10)),
        Bar(200, None, 1),
    ]


@given(st.lists(st.integers(0, 5000), min_size=1))
def test_every_length_is_in_one_bar(values: list[int]) -> None:
    bars = histogram(sorted(values))
    assert sum(bar.count for bar in bars) == len(values)
    for bar in bars:
        inside = [value for value in values if bar.start <= value and (bar.end is None or value < bar.end)]
        assert len(inside) == bar.count
    assert [bar.start for bar in bars[1:]] == [bar.end for bar in bars[:-1]]


def test_what_passes_the_limit_is_counted() -> None:
    result = lengths_of([5, 7, 8, 8], limit=7)
    assert (result.count, result.total, result.longer, result.limit) == (4, 28, 2, 7)
    assert result.quantiles["50%"] == 7 and result.quantiles["100%"] == 8
