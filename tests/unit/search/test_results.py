"""The text of a search's results: order, lines, counts."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf.search.results import ranked, summary, trial_line


def trial(number: int, state: str, value: float | None, **more: Any) -> dict[str, Any]:
    parameters = {"a.rate": 0.001 * (number + 1), "b": ["[x]", "y"][number % 2]}
    rest = {"ci95": None, "updates": None, "seconds": 90.0, "reason": None}
    return {"number": number, "state": state, "value": value, "parameters": parameters, **rest, **more}


@pytest.fixture
def results() -> dict[str, Any]:
    return {
        "search": {"trials": 6, "objective": {"metric": "overall", "direction": "maximize"}},
        "trials": [
            trial(0, "complete", 0.5),
            trial(1, "complete", 0.8, ci95=[0.6, 0.9]),
            trial(2, "pruned", None, updates=7),
            trial(3, "failed", None, reason="failed with exit code 1"),
            trial(4, "complete", 0.61),
            trial(5, "running", None),
        ],
    }


def test_the_best_comes_first(results: dict[str, Any]) -> None:
    assert [item["number"] for item in ranked(results)] == [1, 4, 0]
    results["search"]["objective"]["direction"] = "minimize"
    assert [item["number"] for item in ranked(results)] == [0, 4, 1]


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (1, "trial 1: 0.800 (0.600 to 0.900); 2 min; a.rate 0.002, b y"),
        (0, "trial 0: 0.500; 2 min; a.rate 0.001, b '[x]'"),
        (2, "trial 2: pruned at update 7; 2 min; a.rate 0.003, b '[x]'"),
        (3, "trial 3: failed with exit code 1; 2 min; a.rate 0.004, b y"),
        (5, "trial 5: running; 2 min; a.rate 0.006, b y"),
    ],
)
def test_a_trial_in_a_line(results: dict[str, Any], number: int, line: str) -> None:
    assert trial_line(results["trials"][number]) == line


def test_the_summary_counts_trials_and_those_within_the_interval(results: dict[str, Any]) -> None:
    output = " ".join(summary(results))
    assert "6 of 6 trials: 3 complete, 1 pruned, 1 failed, 1 running." in output
    assert "Best: trial 1: 0.800" in output
    assert "1 of the 2 others lie within its 95 % interval" in output  # 0.61 does, 0.5 does not
    results["trials"][1]["ci95"] = [0.7, 0.9]
    assert "interval" not in " ".join(summary(results))
