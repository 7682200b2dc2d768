"""The reliability diagram and the histogram of rewards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlhf.report.drawing.charts import BOTTOM, LEFT, RIGHT
from rlhf.report.files import read_run
from rlhf.report.page import render
from rlhf.report.reward import reward_table
from rlhf.report.score_charts import histogram, reliability, score_charts

BINS = [
    {"low": 0.5, "high": 0.55, "count": 30, "confidence": 0.52, "accuracy": 0.6, "ci95": [0.42, 0.75]},
    {"low": 0.55, "high": 0.6, "count": 0, "confidence": None, "accuracy": None, "ci95": None},
    {"low": 0.6, "high": 0.65, "count": 10, "confidence": 0.62, "accuracy": 0.5, "ci95": [0.24, 0.76]},
]
CALIBRATION = {"ece": 0.0936, "brier": 0.2, "log_loss": 0.6, "bins": BINS}
SCORES = {
    "chosen": {"median": 1.5},
    "rejected": {"median": 0.5},
    "histogram": {"edges": [0.0, 1.0, 2.0], "chosen": [2, 8], "rejected": [6, 4]},
}
SHARES = {"accuracy": 0.6, "count": 50, "ci95": [0.46, 0.72]}


def test_the_reliability_diagram() -> None:
    chart = reliability(CALIBRATION)
    assert chart is not None
    assert chart.summary == "off by 9.4 points on average"
    assert (chart.hover["step"], chart.axis) == (
        ["50\N{EN DASH}55\N{NO-BREAK SPACE}%, 30 pairs", "60\N{EN DASH}65\N{NO-BREAK SPACE}%, 10 pairs"],
        "confidence",
    )
    assert chart.hover["rows"][0]["value"] == ["60.0\N{NO-BREAK SPACE}%", "50.0\N{NO-BREAK SPACE}%"]
    assert chart.drawn[0].line.count("L") == 1  # two dots: the empty bin has none
    # A strip a dot, and its ends inside the drawing: higher accuracy is further up.
    first, second = chart.hover["rows"][0]["py"]
    assert first < second < BOTTOM
    assert chart.strips.count("M") == 2
    # The axis begins at 24 %, the lower end of the second strip, not at 40 %.
    lowest = float(chart.strips.split("M")[2].split(" ")[1].split("V")[0])
    assert lowest == BOTTOM


def test_the_histogram() -> None:
    chart = histogram(SCORES)
    assert chart is not None
    assert [line.name for line in chart.drawn] == ["better answers", "worse answers"]
    assert chart.summary == "medians 1.50 and 0.500"
    assert chart.hover["rows"][1] | {"py": []} == {"name": "worse answers", "value": ["6", "4"], "py": []}
    assert chart.hover["step"] == ["0 to 1.00", "1.00 to 2.00"]
    # The outline of the better answers: up to 2 in the first half, up to 8 in the second, down to zero.
    path = chart.drawn[0].line
    assert path.startswith(f"M{LEFT} {BOTTOM}V") and path.endswith(f"H{RIGHT}V{BOTTOM}")
    low, high = (float(part.split("H")[0]) for part in path.split("V")[1:3])
    assert high < low < BOTTOM


def test_without_figures_there_is_no_picture() -> None:
    assert score_charts({}) == []
    assert reliability({**CALIBRATION, "bins": [BINS[1]]}) is None
    assert histogram({**SCORES, "histogram": {"edges": [0, 1, 2], "chosen": [1]}}) is None


def test_the_page_shows_them_and_the_table_its_parts(reward_run: Path) -> None:
    result: dict[str, Any] = json.loads((reward_run / "eval.json").read_text())
    held_out = {"subsets": {"x": SHARES}, "strengths": {"1": SHARES, "2": SHARES}}
    lengths = {"shorter": SHARES, "longer": SHARES, "same": {"accuracy": None, "count": 0}, "controlled": 0.6}
    result |= {"calibration": CALIBRATION, "scores": SCORES, "lengths": lengths, "held_out": held_out}
    result["strengths"] = {"1": SHARES}  # all alike: no group of its own
    (reward_run / "eval.json").write_text(json.dumps(result))
    page = render(read_run(reward_run))
    assert "Reliability" in page and 'data-axis="confidence"' in page and 'data-axis="reward"' in page
    groups = {title: [row.name for row in rows] for title, rows in reward_table(result)}
    assert groups["By length of the better answer"] == ["shorter", "longer", "mean of the two"]
    assert groups["Held out, by strength of the preference"] == ["1", "2"]
    assert "By strength of the preference" not in groups
