"""What a search says about itself: order, lines, names, doubts."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from rlhf.search.picture import draw
from rlhf.search.results import best_table, ranked, short_names, summary, trial_line


def trial(number: int, state: str, value: float | None, **more: Any) -> dict[str, Any]:
    parameters = {"a.rate": 0.001 * (number + 1), "b": ["[x]", "y"][number % 2]}
    rest = {"ci95": None, "updates": None, "seconds": 90.0, "reason": None}
    return {"number": number, "state": state, "value": value, "parameters": parameters, **rest, **more}


@pytest.fixture
def results() -> dict[str, Any]:
    return {
        "objective": {"metric": "overall", "direction": "maximize"},
        "parameters": {"a.rate": {"low": 1e-3, "high": 1e-2, "log": True}, "b": {"choices": ["[x]", "y"]}},
        "wanted": 6,
        "best": 1,
        "importance": {},
        "trials": [
            trial(0, "complete", 0.5),
            trial(1, "complete", 0.8, ci95=[0.6, 0.9]),
            trial(2, "pruned", None, updates=7),
            trial(3, "failed", None, reason="failed with exit code 1"),
            trial(4, "complete", 0.61),
            trial(5, "running", None, seconds=None),
        ],
    }


def test_the_best_comes_first(results: dict[str, Any]) -> None:
    assert [item["number"] for item in ranked(results)] == [1, 4, 0]
    results["objective"]["direction"] = "minimize"
    assert [item["number"] for item in ranked(results)] == [0, 4, 1]


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (1, "trial 1: 0.800 (0.600 to 0.900); the best so far, 2 min; rate 0.002, b y"),
        (0, "trial 0: 0.500; best 0.800 (trial 1), 2 min; rate 0.001, b '[x]'"),
        (
            2,
            "trial 2: pruned at update 7; best 0.800 (trial 1), 2 min; rate 0.003, b '[x]'",
        ),
        (3, "trial 3: failed with exit code 1; best 0.800 (trial 1), 2 min; rate 0.004, b y"),
        (5, "trial 5: running; best 0.800 (trial 1); rate 0.006, b y"),
    ],
)
def test_a_trial_in_a_line(results: dict[str, Any], number: int, line: str) -> None:
    assert trial_line(results, number) == line


def test_the_summary_counts_and_doubts(results: dict[str, Any]) -> None:
    output = " ".join(summary(results))
    assert "6 of 6 trials: 3 complete, 1 pruned, 1 failed, 1 running." in output
    assert "1 of the 2 others lie within its 95 % interval" in output  # 0.61 does, 0.5 does not
    results["trials"][1]["ci95"] = [0.7, 0.9]
    assert "interval" not in " ".join(summary(results))


def test_the_table_shows_values_as_they_are(results: dict[str, Any]) -> None:
    out = io.StringIO()
    Console(file=out, width=100).print(best_table(results))
    rows = [line for line in out.getvalue().splitlines() if "0." in line]
    assert [row.split()[1] for row in rows] == ["1", "4", "0"]
    assert "'[x]'" in rows[2]


def test_names_are_as_short_as_they_may_be() -> None:
    keys = ["stages.0.optimizer.learning_rate", "stages.0.epochs", "stages.1.epochs", "rank", "adapter.rank"]
    assert list(short_names(keys).values()) == [
        "learning_rate", "0.epochs", "1.epochs", "rank", "adapter.rank",
    ]  # fmt: skip


def test_plots_need_a_completed_trial(results: dict[str, Any]) -> None:
    plots = draw(results)
    assert list(plots) == ["search.png", "search-keys.png"]
    assert all(data.startswith(b"\x89PNG") for data in plots.values())
    results["best"] = None
    assert draw(results) == {}
