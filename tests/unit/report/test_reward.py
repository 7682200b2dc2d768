"""The reward model's table and verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.core.statistics import wilson_interval
from rlhf.report.files import read_run
from rlhf.report.reward import dropped, overall, reward_charts, reward_table, reward_verdict, stages

SUBSETS = {"a": {"accuracy": 0.8, "count": 100}, "b": {"accuracy": 0.6, "count": 300}}
S = "\N{NO-BREAK SPACE}"


def test_the_table_has_everything_in_order() -> None:
    result = {"subsets": SUBSETS, "sections": {"x": 0.7}, "overall": 0.65, "length_baseline": 0.5}
    groups = reward_table({**result, "intervals": {"sections": {"x": [0.6, 0.8]}}})
    assert [(title, [row.name for row in rows]) for title, rows in groups] == [
        ("", ["Overall"]),
        ("Sections", ["x"]),
        ("Subsets", ["a", "b"]),
    ]
    total, section, first = groups[0][1][0], groups[1][1][0], groups[2][1][0]
    assert (total.accuracy, total.count, total.baseline) == (f"65.0{S}%", "400", f"50.0{S}%")
    assert (section.interval, section.count) == ("60.0\N{EN DASH}80.0", "")
    low, high = wilson_interval(0.8, 100)
    assert first.interval == f"{100 * low:.1f}\N{EN DASH}{100 * high:.1f}"


def test_a_mean_of_sections_gets_no_interval_of_pooled_pairs() -> None:
    result = overall({"subsets": SUBSETS, "overall": 0.7})
    assert result is not None
    assert result.interval is None
    pooled = overall({"subsets": SUBSETS, "overall": 0.65})
    assert pooled is not None
    assert pooled.interval == tuple(wilson_interval(0.65, 400))


@pytest.mark.parametrize(
    ("share", "interval", "baseline", "label"),
    [
        (0.67, [0.62, 0.72], 0.55, "It learnt to judge"),
        (0.67, [0.62, 0.72], 0.65, "Not better than length"),
        (0.67, [0.62, 0.72], 0.80, "Not better than length"),
        (0.52, [0.48, 0.56], 0.40, "Not better than chance"),
        (0.40, [0.35, 0.45], 0.50, "Worse than chance"),
    ],
)
def test_verdicts(share: float, interval: list[float], baseline: float, label: str) -> None:
    result = {"overall": share, "length_baseline": baseline, "intervals": {"overall": interval}}
    assert reward_verdict(result).label == label


def test_the_sentence() -> None:
    result: dict[str, Any] = {"subsets": SUBSETS, "overall": 0.65, "length_baseline": 0.5}
    verdict = reward_verdict({**result, "intervals": {"overall": [0.602, 0.695]}})
    assert verdict.sentence == (
        f"The reward model picks the better answer in 65.0{S}% of 400 held-out comparisons "
        f"(95{S}% interval 60.2 to 69.5)."
    )
    assert verdict.more == [
        f"Always taking the longer answer would be right in 50.0{S}%: the model is 15.0 points better "
        "than that."
    ]
    assert reward_verdict({}).label == "No verdict yet"


def test_dropped_rows_by_reason_the_largest_first() -> None:
    few = {"count": 2, "examples": ["f.jsonl:3", "f.jsonl:9"]}
    result = dropped({"read": 2010, "kept": 8, "dropped": {"few": few, "many": {"count": 2000}}})
    assert result is not None
    assert (result.read, result.kept) == ("2,010", "8")
    assert result.reasons == [("many", "2,000", ""), ("few", "2", "f.jsonl:3, f.jsonl:9")]
    assert dropped({}) is None


def test_stages_and_curves(reward_run: Path) -> None:
    run = read_run(reward_run)
    assert [(mark.at, mark.label) for mark in stages(run)] == [(1, "regression"), (41, "preferences")]
    charts, shown = reward_charts(run)
    assert [chart.title for chart in charts] == [
        "Accuracy",
        "Margin",
        "Regression loss",
        "Preference loss",
        "Validation loss",
        "Learning rate",
    ]
    assert {"loss/bt", "validation/accuracy", "stage"} <= shown
    assert charts[5].drawn[0].line.startswith("M")


def test_a_run_without_the_terms_of_the_reward_model_shows_its_loss(tmp_path: Path) -> None:
    """As of a principle model, a justifier and DPO."""
    lines = [{"step": step, "stage": "justifier", "loss/total": 3.0 / step} for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    charts, shown = reward_charts(read_run(tmp_path))
    assert [chart.title for chart in charts] == ["Training loss"]
    assert "loss/total" in shown
