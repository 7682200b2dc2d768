"""Two charts of a reward model's scores: the reliability of its margins and a histogram of its rewards."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from rlhf.report.drawing.charts import BOTTOM, LEFT, RIGHT, TOP, Chart, Drawn, Mark, hover
from rlhf.report.drawing.scales import Scale, bounds, round_ticks
from rlhf.report.numbers import DASH, finite, fixed, percent, short, tick_labels

SURE = 0.5
"""The lowest possible confidence of a preference, at which the axis begins."""


def score_charts(evaluation: Mapping[str, Any]) -> list[Chart]:
    """The reliability diagram and the histogram, if the evaluation has their figures."""
    charts = (reliability(evaluation.get("calibration") or {}), histogram(evaluation.get("scores") or {}))
    return [chart for chart in charts if chart]


def reliability(calibration: Mapping[str, Any]) -> Chart | None:
    """Accuracy by confidence sigmoid(|margin|); a calibrated model is on the diagonal.

    Args:
        calibration: `{"ece", "bins": [{"low", "high", "count", "confidence", "accuracy", "ci95"}]}`.
    """
    ece = finite(calibration.get("ece"))
    bins = [bucket for bucket in calibration.get("bins") or [] if bucket.get("count")]
    if ece is None or not bins:
        return None
    ends = {bucket["confidence"]: bucket["ci95"] for bucket in bins if bucket.get("ci95")}
    points = [(bucket["confidence"], bucket["accuracy"]) for bucket in bins]
    lowest = min([0.4, *(low for low, _ in ends.values()), *(accuracy for _, accuracy in points)])
    x, y = Scale(SURE, 1.02, LEFT, RIGHT), Scale(lowest, 1.02, BOTTOM, TOP)
    ranges = [f"{fixed(100 * bucket['low'], 0)}{DASH}{percent(bucket['high'], 0)}" for bucket in bins]
    labels = {
        bucket["confidence"]: f"{text}, {bucket['count']:,} pairs"
        for bucket, text in zip(bins, ranges, strict=True)
    }
    line = "L".join(f"{x(confidence):g} {y(accuracy):g}" for confidence, accuracy in points)
    dots = "".join(f"M{x(confidence):g} {y(accuracy):g}h0" for confidence, accuracy in points)
    return Chart(
        title="Reliability",
        unit="pairs judged right, by the confidence sigmoid(|margin|)",
        note="Strips: 95 % intervals. Margins of a model that was not trained by Bradley\N{EN DASH}Terry "
        "are not log-odds.",
        summary=f"off by {fixed(100 * ece, 1)} points on average",
        drawn=[Drawn("pairs judged right", dots, f"M{line}", large=True)],
        x_ticks=[Mark(x(tick), percent(tick, 0)) for tick in round_ticks(SURE, 1.0)],
        y_ticks=[Mark(y(tick), percent(tick, 0)) for tick in round_ticks(y.low, 1.0)],
        levels=[],
        stages=[],
        hover=hover({"pairs judged right": points}, x, y, lambda share: percent(share, 1), labels),
        axis="confidence",
        under=f"M{x(SURE):g} {y(SURE):g}L{x(1.0):g} {y(1.0):g}",
        strips="".join(f"M{x(at):g} {y(low):g}V{y(high):g}" for at, (low, high) in ends.items()),
    )


def histogram(scores: Mapping[str, Any]) -> Chart | None:
    """Histograms of the rewards of better and of worse answers, as two outlines.

    Args:
        scores: `{"chosen": {"median"}, "rejected": {"median"}, "histogram": {"edges", "chosen",
            "rejected"}}`.
    """
    bars = scores.get("histogram") or {}
    edges = bars.get("edges") or []
    sides = {"better answers": "chosen", "worse answers": "rejected"}
    if len(edges) < 2 or any(len(bars.get(side) or []) != len(edges) - 1 for side in sides.values()):
        return None
    counts = {name: [float(count) for count in bars[side]] for name, side in sides.items()}
    x = Scale(edges[0], edges[-1], LEFT, RIGHT)
    y = Scale(
        0.0, bounds([count for column in counts.values() for count in column], zero=True)[1], BOTTOM, TOP
    )
    middles = [(low + high) / 2 for low, high in itertools.pairwise(edges)]
    labels = {(low + high) / 2: f"{short(low)} to {short(high)}" for low, high in itertools.pairwise(edges)}
    ticks = round_ticks(x.low, x.high, 6)
    heights = round_ticks(0.0, y.high)
    better, worse = (short((scores.get(side) or {}).get("median", 0.0)) for side in sides.values())
    return Chart(
        title="Rewards",
        unit="answers by their reward",
        note="The outermost bins include all rewards beyond them.",
        summary=f"medians {better} and {worse}",
        drawn=[Drawn(name, "", _stairs(edges, column, x, y)) for name, column in counts.items()],
        x_ticks=[Mark(x(tick), label) for tick, label in zip(ticks, tick_labels(ticks), strict=True)],
        y_ticks=[Mark(y(tick), label) for tick, label in zip(heights, tick_labels(heights), strict=True)],
        levels=[],
        stages=[],
        hover=hover(
            {name: list(zip(middles, column, strict=True)) for name, column in counts.items()},
            x,
            y,
            lambda count: fixed(count, 0),
            labels,
        ),
        axis="reward",
    )


def _stairs(edges: list[float], counts: list[float], x: Scale, y: Scale) -> str:
    """The outline of a histogram's bars as a path."""
    steps = "".join(f"V{y(count):g}H{x(edge):g}" for edge, count in zip(edges[1:], counts, strict=True))
    return f"M{x(edges[0]):g} {y(0.0):g}{steps}V{y(0.0):g}"
