"""The chart of the search for ExPO's factor: accuracy on held-out pairs by factor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf.report.drawing.charts import BOTTOM, LEFT, RIGHT, TOP, Chart, Drawn, Mark, hover
from rlhf.report.drawing.scales import Scale, bounds, round_ticks
from rlhf.report.numbers import finite, fixed, percent

SERIES = "pairs judged right"


def expo_charts(expo: Mapping[str, Any]) -> list[Chart]:
    """Accuracy by factor, with a line at the chosen one; no chart if the run had no search.

    Args:
        expo: expo.json: `{"weak", "strong", "factor", "pairs", "trials": [{"factor", "accuracy",
            "loss"}]}`.
    """
    trials = [trial for trial in expo.get("trials") or [] if finite(trial.get("accuracy")) is not None]
    chosen = finite(expo.get("factor"))
    if len(trials) < 2 or chosen is None:
        return []
    points = [(trial["factor"], trial["accuracy"]) for trial in trials]
    x = Scale(points[0][0], points[-1][0], LEFT, RIGHT)
    low, high = bounds([share for _, share in points])
    y = Scale(max(0.0, low), min(1.0, high) if high > low else 1.0, BOTTOM, TOP)
    line = "L".join(f"{x(factor):g} {y(share):g}" for factor, share in points)
    dots = "".join(f"M{x(factor):g} {y(share):g}h0" for factor, share in points)
    labels = {trial["factor"]: f"{trial['factor']:g}, loss {fixed(trial['loss'], 4)}" for trial in trials}
    best, plain = dict(points).get(chosen), dict(points).get(1.0)
    before = "" if plain is None or chosen == 1.0 else f" (at 1: {percent(plain, 1)})"
    return [
        Chart(
            title="ExPO",
            unit=f"{SERIES}, of {expo.get('pairs')}, from {expo.get('weak')} (0) to {expo.get('strong')} "
            "(1) and beyond",
            note="The factor was chosen on these pairs, so its accuracy here is an optimistic one.",
            summary=f"{chosen:g} was chosen" + ("" if best is None else f": {percent(best, 1)}{before}"),
            drawn=[Drawn(SERIES, dots, f"M{line}")],
            x_ticks=[Mark(x(tick), f"{tick:g}") for tick in round_ticks(x.low, x.high, 6)],
            y_ticks=[Mark(y(tick), percent(tick, 0)) for tick in round_ticks(y.low, y.high)],
            levels=[],
            stages=[Mark(LEFT, ""), Mark(x(chosen), "")],
            hover=hover({SERIES: points}, x, y, lambda share: percent(share, 1), labels),
            axis="factor",
        )
    ]
