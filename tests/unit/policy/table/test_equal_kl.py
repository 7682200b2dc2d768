"""The search for the scale with a given KL, and the figures there."""

from __future__ import annotations

import math

import numpy as np
import pytest

from policy.table.equal_kl import Point, at_kl, next_scale


def search(kl_at_one: float, wanted: float, power: float = 2.0, max_scale: float = 2.0) -> list[float]:
    """The scales that are tried where KL(s) = kl_at_one s^power."""
    tried = [(1.0, kl_at_one)]
    while (scale := next_scale(tried, wanted, tolerance=0.1, max_scale=max_scale)) is not None and len(
        tried
    ) < 9:
        tried.append((scale, kl_at_one * scale**power))
    return [scale for scale, _ in tried]


@pytest.mark.parametrize("kl_at_one", [0.4, 1.0, 3.0, 25.0])
def test_one_more_scale_suffices_where_the_kl_is_quadratic(kl_at_one: float) -> None:
    scales = search(kl_at_one, 1.0)
    assert len(scales) <= 2
    assert scales[-1] == pytest.approx(math.sqrt(1 / kl_at_one))


@pytest.mark.parametrize(("kl_at_one", "power"), [(9.0, 3.0), (9.0, 1.2), (0.5, 3.0), (0.6, 1.2)])
def test_it_converges_where_the_kl_is_not(kl_at_one: float, power: float) -> None:
    scales = search(kl_at_one, 1.0, power)
    assert len(scales) <= 5
    assert kl_at_one * scales[-1] ** power == pytest.approx(1.0, rel=0.1)


def test_it_stops_at_the_largest_scale() -> None:
    assert search(0.1, 1.0, max_scale=2.0) == [1.0, 2.0]
    assert next_scale([(1.0, -0.01)], 1.0, tolerance=0.1, max_scale=4.0) == 2.0, "an estimate below 0"


def points(*triples: tuple[float, float, float]) -> list[Point]:
    return [Point(scale, kl, {"win": np.array([value, 2 * value])}) for scale, kl, value in triples]


def test_figures_are_interpolated_between_the_two_points_around() -> None:
    path = points((0.0, 0.0, 0.5), (1.0, 4.0, 0.9), (0.5, 0.8, 0.6))
    found = at_kl(path, 1.6, tolerance=0.1)
    assert found is not None
    # A quarter of the way from KL 0.8 to 4.
    assert found.figures["win"].tolist() == pytest.approx([0.675, 1.35])
    assert (found.kl, found.scale) == (1.6, pytest.approx(0.625))


def test_a_path_that_ends_before_has_no_figures_unless_it_is_close() -> None:
    path = points((0.0, 0.0, 0.5), (1.0, 0.9, 0.7))
    assert at_kl(path, 2.0, tolerance=0.15) is None
    close = at_kl(path, 1.0, tolerance=0.15)
    assert close is path[1]
    assert at_kl(points((1.0, 3.0, 0.7)), 2.0, tolerance=0.1) is None, "it starts beyond"
