"""Geometry: what is drawn stands where the numbers say."""

from __future__ import annotations

import re

import pytest

from rlhf.report.drawing.charts import BOTTOM, LEFT, RIGHT, TOP, Mark, line_chart, stacked_chart
from rlhf.report.drawing.scales import Scale, bounds, log_ticks, round_ticks, step_ticks
from rlhf.report.drawing.series import POINT_LIMIT, Series, parts, running_mean, thin


def test_a_scale_maps_its_ends_and_holds_back_the_rest() -> None:
    scale = Scale(0.0, 10.0, 100.0, 0.0)
    assert [scale(value) for value in (0, 2.5, 10, 11, -5)] == [100, 75, 0, 0, 100]
    assert scale.holds(10)
    assert not scale.holds(10.1)
    log = Scale(0.01, 100.0, 0.0, 40.0, log=True)
    assert [log(value) for value in (0.01, 0.1, 1, 100, 0)] == [0, 10, 20, 40, 0]


def test_ticks_are_round() -> None:
    assert round_ticks(-0.1, 1.05) == [0, 0.25, 0.5, 0.75, 1]
    assert round_ticks(0, 47) == [0, 10, 20, 30, 40]
    assert step_ticks(0.5, 4.5) == [1, 2, 3, 4]
    assert log_ticks(0.02, 2) == pytest.approx([0.03, 0.1, 0.3, 1])


def test_one_outlier_does_not_flatten_a_chart() -> None:
    calm = [1 + 0.01 * (i % 5) for i in range(50)]
    low, high = bounds([*calm, 500.0])
    assert low < 1
    assert 1.04 < high < 2
    wide = [float(i) for i in range(51)]
    assert bounds(wide) == pytest.approx((-3, 53))
    assert bounds([2.0, 2.0]) == (1, 3)


def test_a_running_mean_keeps_constants_and_lines_and_calms_noise() -> None:
    assert running_mean([3.0] * 30) == pytest.approx([3.0] * 30)
    line = [0.5 * i for i in range(60)]
    assert running_mean(line)[20:40] == pytest.approx(line[20:40])
    flicker = [float(i % 2) for i in range(60)]
    assert running_mean(flicker)[30] == pytest.approx(0.5, abs=0.01)


def test_thinning_averages_neighbours() -> None:
    assert thin([(float(i), float(i * i)) for i in range(6)], 3) == [(0.5, 0.5), (2.5, 6.5), (4.5, 20.5)]
    assert thin([(1.0, 2.0)], 5) == [(1.0, 2.0)]
    many = parts(Series("x", [(float(i), 0.0) for i in range(10_000)]))
    assert len(many[0].points) <= POINT_LIMIT


def test_no_mean_runs_over_the_end_of_a_stage() -> None:
    step_up = Series("loss", [(float(i), 0.0 if i < 20 else 1.0) for i in range(40)])
    first, second = parts(step_up, [20.0])
    assert [value for _, value in first.line] == [0.0] * 20
    assert [value for _, value in second.line] == pytest.approx([1.0] * 20)


def test_exact_series_are_not_smoothed() -> None:
    rate = Series("rate", [(float(i), float(i < 5)) for i in range(40)], exact=True)
    assert parts(rate)[0].line == list(rate.points)


def test_a_line_chart_places_dots_ticks_levels_and_stages() -> None:
    points = [(1.0, 0.0), (2.0, 1.0), (3.0, 2.0)]
    chart = line_chart(
        "Loss",
        "nats",
        [Series("loss", points), Series("absent", [])],
        span=(0, 4),
        levels=[Mark(1.0, "half")],
        stages=[Mark(0, "a"), Mark(2, "b")],
    )
    assert chart is not None
    assert [line.name for line in chart.drawn] == ["loss"]
    xs, ys = zip(*re.findall(r"M([\d.]+) ([\d.]+)h0", chart.drawn[0].dots), strict=True)
    x, y = [float(x_text) for x_text in xs], [float(y_text) for y_text in ys]
    assert LEFT < x[0] < x[1] < x[2] < RIGHT
    assert x[1] == pytest.approx((LEFT + RIGHT) / 2, abs=0.1)
    assert BOTTOM > y[0] > y[1] > y[2] > TOP
    assert chart.levels[0].at == pytest.approx(y[1], abs=0.1)
    assert chart.stages[1].at == pytest.approx(x[1], abs=0.1)
    assert chart.drawn[0].line.count("M") == 2, "a new line starts with the second stage"
    assert chart.drawn[0].large
    assert chart.hover["step"] == ["1", "2", "3"]
    assert chart.hover["rows"][0]["value"] == ["0", "1.00", "2.00"]
    assert chart.hover["px"] == pytest.approx(x)


def test_hover_is_silent_where_a_line_has_no_value() -> None:
    chart = line_chart("x", "", [Series("a", [(1, 1.0), (2, 2.0)]), Series("b", [(2, 5.0)])], span=(1, 2))
    assert chart is not None
    assert chart.hover["rows"][1]["value"] == [None, "5.00"]


def test_an_outlier_is_counted_and_does_not_bend_the_line() -> None:
    points = [(float(i), 1 + 0.01 * (i % 3)) for i in range(60)]
    points[30] = (30.0, 900.0)
    chart = line_chart("norm", "", [Series("norm", points)], span=(0, 59))
    assert chart is not None
    assert chart.note == "1 dot lies beyond the axis."
    assert "900" in chart.hover["rows"][0]["value"]


def test_a_logarithmic_chart_survives_zeros() -> None:
    chart = line_chart("d", "", [Series("d", [(1, 0.0), (2, 0.01), (3, 1.0)])], span=(1, 3), log=True)
    assert chart is not None
    assert [tick.label for tick in chart.y_ticks] == ["0.01", "0.1", "1"]
    zeros = line_chart("d", "", [Series("d", [(1, 0.0), (2, 0.0)])], span=(1, 2), log=True)
    assert zeros is not None


def test_no_points_no_chart() -> None:
    assert line_chart("x", "", [Series("a", [])], span=(0, 1)) is None
    assert stacked_chart("x", "", [Series("a", [])], span=(0, 1)) is None


def test_bars_stand_on_one_another() -> None:
    chart = stacked_chart(
        "Time",
        "s",
        [Series("rollout", [(1, 3.0), (2, 3.0)]), Series("update", [(1, 1.0), (2, 1.0), (3, 1.0)])],
        span=(1, 3),
    )
    assert chart is not None
    bars = [re.findall(r"M[\d.]+ ([\d.]+)V([\d.]+)h", line.dots) for line in chart.drawn]
    assert len(bars[0]) == len(bars[1]) == 2, "step 3 has no rollout time"
    for (bottom, top), (next_bottom, next_top) in zip(*bars, strict=True):
        assert float(bottom) == BOTTOM
        assert next_bottom == top
        assert (float(bottom) - float(top)) == pytest.approx(
            3 * (float(next_bottom) - float(next_top)), abs=0.2
        )
    assert [line.share for line in chart.drawn] == ["75\N{NO-BREAK SPACE}%", "25\N{NO-BREAK SPACE}%"]
    assert chart.hover["rows"][1]["value"] == ["1.00", "1.00"]
