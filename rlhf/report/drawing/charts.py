"""Charts as path data; the template turns them into SVG, and a short script shows values on hover."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from rlhf.report.drawing.scales import Scale, bounds, log_ticks, round_ticks, step_ticks
from rlhf.report.drawing.series import POINT_LIMIT, Part, Point, Series, parts, thin
from rlhf.report.numbers import decimals_for, fixed, percent, short, tick_labels

LEFT, RIGHT, TOP, BOTTOM = 52, 452, 26, 190
PLOT = {"width": 460, "height": 224, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM}
"""Edges of the drawing and of the plot in it; the space above `top` is for the names of stages."""
FEW = 30
"""Series with at most this many points have large dots and no running mean."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A labelled position on an axis: a tick, a reference level, or the start of a stage."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Drawn:
    """One series as path data: dots (or bars), and lines."""

    name: str
    dots: str
    line: str
    large: bool = False
    share: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """The template's input for one chart; `hover` is what the script shows at each step."""

    title: str
    unit: str
    note: str
    summary: str
    drawn: list[Drawn]
    x_ticks: list[Mark]
    y_ticks: list[Mark]
    levels: list[Mark]
    stages: list[Mark]
    hover: dict[str, Any]
    stacked: bool = False
    axis: str = "step"
    """Name of the horizontal axis."""
    under: str = ""
    """Path of a reference line under the series."""
    strips: str = ""
    """Path of the intervals of the first series' dots."""


def line_chart(
    title: str,
    unit: str,
    series: Sequence[Series],
    *,
    span: tuple[float, float],
    share: bool = False,
    zero: bool = False,
    log: bool = False,
    levels: Sequence[Mark] = (),
    stages: Sequence[Mark] = (),
) -> Chart | None:
    """Dots and a running mean for each series; None if no series has a point.

    Args:
        span: the first and last step of the axis.
        share: values are fractions, written in per cent.
        zero: the axis includes zero.
        log: a logarithmic axis; values of zero and below are drawn at its lower edge.
        levels: horizontal reference lines.
        stages: where the lines restart; `at` is the first step of a stage.
    """
    series = [curve for curve in series if curve.points]
    if not series:
        return None
    values = [value for curve in series for _, value in curve.points]
    x, y = _step_scale(span), _value_scale(values, levels, share=share, zero=zero, log=log)
    starts = [stage.at for stage in stages[1:]]
    cut = {curve.name: parts(curve, starts, (-math.inf if log else y.low, y.high)) for curve in series}
    dots = {name: [point for part in pieces for point in part.points] for name, pieces in cut.items()}
    beyond = sum(not y.holds(value) for pieces in dots.values() for _, value in pieces)
    write: Callable[[float], str] = (lambda value: percent(value, 1)) if share else short
    return Chart(
        title=title,
        unit=unit,
        note="" if log else _beyond(beyond, "dot lies", "dots lie"),
        summary=_summary(cut[series[0].name], write),
        drawn=[_drawn(name, pieces, x, y) for name, pieces in cut.items()],
        x_ticks=_x_ticks(x),
        y_ticks=_y_ticks(y, share=share),
        levels=[Mark(y(level.at), level.label) for level in levels if y.holds(level.at)],
        stages=[Mark(x(max(stage.at, x.low)), stage.label) for stage in stages],
        hover=_hover(dots, x, y, write),
    )


def stacked_chart(
    title: str, unit: str, series: Sequence[Series], *, span: tuple[float, float]
) -> Chart | None:
    """Stacked bars of the series, the first at the bottom; None if nothing can be stacked.

    Only steps at which every series has a value are drawn.
    """
    series = [layer for layer in series if layer.points]
    if not series:
        return None
    values = {layer.name: dict(layer.points) for layer in series}
    steps = sorted(set.intersection(*(set(at) for at in values.values())))
    if not steps:
        return None
    heights = {name: thin([(step, at[step]) for step in steps], POINT_LIMIT) for name, at in values.items()}
    columns = list(zip(*heights.values(), strict=True))
    tops = [list(accumulate(max(0.0, value) for _, value in column)) for column in columns]
    x = _step_scale(span)
    y = Scale(0.0, bounds([top[-1] for top in tops], zero=True)[1], BOTTOM, TOP)
    pitch = (x.end - x.start) / max(1, len(columns))
    total = sum(top[-1] for top in tops) or 1.0
    drawn = []
    for index, (name, bars) in enumerate(heights.items()):
        path = "".join(
            _bar(x(step), pitch, y(top[index - 1] if index else 0.0), y(top[index]))
            for (step, _), top in zip(bars, tops, strict=True)
        )
        part = percent(sum(max(0.0, value) for _, value in bars) / total, 0)
        drawn.append(Drawn(name, path, "", share=part))
    hover = _hover(heights, x, y, short)
    for index, row in enumerate(hover["rows"]):
        row["py"] = [y(top[index]) for top in tops]
    return Chart(
        title=title,
        unit=unit,
        note=_beyond(sum(not y.holds(top[-1]) for top in tops), "bar rises", "bars rise"),
        summary=f"{short(total / len(columns))} on average",
        drawn=drawn,
        x_ticks=_x_ticks(x),
        y_ticks=_y_ticks(y),
        levels=[],
        stages=[],
        hover=hover,
        stacked=True,
    )


def hover(
    points: Mapping[str, Sequence[Point]],
    x: Scale,
    y: Scale,
    write: Callable[[float], str],
    labels: Mapping[float, str],
) -> dict[str, Any]:
    """The script's data for an axis that does not count steps; `labels` name the positions it snaps to."""
    script = _hover({name: list(series) for name, series in points.items()}, x, y, write)
    places = sorted({place for series in points.values() for place, _ in series})
    return {**script, "step": [labels[place] for place in places]}


def _step_scale(span: tuple[float, float]) -> Scale:
    low, high = span
    room = max(0.5, 0.015 * (high - low))
    return Scale(low - room, high + room, LEFT, RIGHT)


def _value_scale(values: list[float], levels: Sequence[Mark], *, share: bool, zero: bool, log: bool) -> Scale:
    if log and max(values) > 0:
        above = [value for value in [*values, *(level.at for level in levels)] if value > 0]
        return Scale(min(above) / 1.3, max(above) * 1.3, BOTTOM, TOP, log=True)
    low, high = bounds(values, zero=zero)
    for level in levels:
        low, high = min(low, level.at), max(high, level.at)
    return Scale(max(0.0, low) if share else low, min(1.02, high) if share else high, BOTTOM, TOP)


def _y_ticks(y: Scale, *, share: bool = False) -> list[Mark]:
    ticks = log_ticks(y.low, y.high) if y.log else round_ticks(y.low, y.high)
    if share:
        return [Mark(y(tick), percent(tick, 0)) for tick in ticks]
    return [Mark(y(tick), label) for tick, label in zip(ticks, tick_labels(ticks), strict=True)]


def _x_ticks(x: Scale) -> list[Mark]:
    return [
        Mark(x(tick), short(tick) if tick >= 1e6 else f"{tick:,.0f}") for tick in step_ticks(x.low, x.high)
    ]


def _drawn(name: str, pieces: list[Part], x: Scale, y: Scale) -> Drawn:
    dots = "".join(f"M{x(step):g} {y(value):g}h0" for part in pieces for step, value in part.points)
    line = "".join(
        "M" + "L".join(f"{x(step):g} {y(value):g}" for step, value in part.line) for part in pieces
    )
    few = sum(len(part.points) for part in pieces) <= FEW and not any(part.smoothed for part in pieces)
    return Drawn(name, dots, line, large=few)


def _bar(middle: float, pitch: float, bottom: float, top: float) -> str:
    gap = 0.0 if pitch < 4 else 1.0
    left = max(LEFT, middle - pitch / 2 + gap / 2)
    width = min(RIGHT, middle + pitch / 2 - gap / 2) - left
    return f"M{left:.1f} {bottom:g}V{top:g}h{width:.1f}V{bottom:g}z"


def _beyond(count: int, singular: str, plural: str) -> str:
    return f"{count} {singular if count == 1 else plural} beyond the axis." if count else ""


def _summary(pieces: list[Part], write: Callable[[float], str]) -> str:
    """First and last value of the (smoothed) line, as text."""
    first, last = pieces[0].line[0][1], pieces[-1].line[-1][1]
    largest = max(abs(first), abs(last))
    if write is short and largest >= 1e-3:
        decimals = decimals_for(largest)
        return f"{fixed(first, decimals)} \N{RIGHTWARDS ARROW} {fixed(last, decimals)}"
    return f"{write(first)} \N{RIGHTWARDS ARROW} {write(last)}"


def _hover(
    points: dict[str, list[Point]], x: Scale, y: Scale, write: Callable[[float], str]
) -> dict[str, Any]:
    """The positions the pointer snaps to, and each series' value there as text (null if it has none)."""
    places = sorted({step for pairs in points.values() for step, _ in pairs})
    rows = []
    for name, pairs in points.items():
        at = dict(pairs)
        rows.append(
            {
                "name": name,
                "value": [write(at[step]) if step in at else None for step in places],
                "py": [y(at[step]) if step in at else None for step in places],
            }
        )
    return {"px": [x(step) for step in places], "step": [f"{step:,.0f}" for step in places], "rows": rows}
