"""The picture of the search for ExPO's factor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.report.drawing.charts import LEFT, RIGHT
from rlhf.report.expo import expo_charts
from rlhf.report.files import read_run
from rlhf.report.page import render

S = "\N{NO-BREAK SPACE}"


def trial(factor: float, accuracy: float, loss: float = 0.5) -> dict[str, float]:
    return {"factor": factor, "accuracy": accuracy, "loss": loss}


FOUND: dict[str, Any] = {
    "weak": "stages/regression",
    "strong": "stages/preference",
    "factor": 1.5,
    "pairs": 352,
    "trials": [trial(1.0, 0.90), trial(1.5, 0.92, 0.25), trial(2.0, 0.91)],
}


def test_the_chosen_factor_and_what_it_gains() -> None:
    (chart,) = expo_charts(FOUND)
    assert chart.summary == f"1.5 was chosen: 92.0{S}% (at 1: 90.0{S}%)"
    assert "of 352, from stages/regression (0) to stages/preference (1)" in chart.unit
    assert chart.hover["step"] == ["1, loss 0.5000", "1.5, loss 0.2500", "2, loss 0.5000"]
    low, high, middle = chart.hover["rows"][0]["py"]
    assert high < middle < low  # more accurate is further up
    assert chart.stages[-1].at == pytest.approx((LEFT + RIGHT) / 2)
    (at_one,) = expo_charts({**FOUND, "factor": 1.0})
    assert at_one.summary == f"1 was chosen: 90.0{S}%"


@pytest.mark.parametrize(
    "result", [{}, {**FOUND, "trials": []}, {**FOUND, "trials": [trial(1.0, 0.9)]}, {"factor": None}]
)
def test_without_a_search_there_is_no_picture(result: dict[str, Any]) -> None:
    assert expo_charts(result) == []


def test_equal_accuracies_can_be_drawn() -> None:
    for share in (0.0, 0.5, 1.0):
        (chart,) = expo_charts({**FOUND, "trials": [trial(1.0, share), trial(1.5, share)]})
        assert len(chart.y_ticks) >= 2


def test_it_is_on_the_page_of_a_run_that_has_one(reward_run: Path) -> None:
    assert "ExPO" not in render(read_run(reward_run))
    (reward_run / "expo.json").write_text(json.dumps(FOUND))
    page = render(read_run(reward_run))
    assert "ExPO" in page and "1.5 was chosen" in page
