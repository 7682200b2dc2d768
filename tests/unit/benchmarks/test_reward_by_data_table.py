"""Figures of the accuracy-by-data table, from cells whose values are derived here."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def by_data() -> Any:
    return importlib.import_module("reward_by_data_table")


def cell(rate: float, seed: int, rewards: list[float], *, benchmark: bool = True) -> dict[str, Any]:
    """Four test pairs of three prompts: the better answer scores `rewards`, the other 0; lengths 100 and 95,
    50, 200, 100. The first two are the validation pairs too."""
    lengths = [(100, 95), (100, 50), (100, 200), (100, 100)]
    pairs = [
        [source, reward, 0.0, *length]
        for source, reward, length in zip("aabb", rewards, lengths, strict=True)
    ]
    return {
        "side": "ours",
        "pairs": 1000,
        "rate": rate,
        "seed": seed,
        "training_seconds": 60 * (seed + 1),
        "validation": {"pairs": pairs[:2], "prompts": [1, 2], "rows": [0, 1]},
        "test": {"pairs": pairs, "prompts": [1, 2, 3, 3], "rows": [0, 1, 2, 3]},
        **({"benchmark": {"pairs": pairs[2:], "prompts": [1, 2], "rows": [0, 1]}} if benchmark else {}),
    }


CELLS = [
    cell(1e-4, 0, [1, 1, -1, 0]),  # right: 2 of 4, a tie is wrong
    cell(1e-4, 1, [1, 1, 1, -1]),  # right: 3 of 4
    cell(3e-4, 0, [1, -1, 1, 1]),  # worse on the validation pairs, so not shown
]


def test_the_rate_is_chosen_on_validation_and_figures_are_of_the_test_pairs(by_data: Any) -> None:
    [point] = by_data.points(CELLS)
    assert (point.rate, point.seeds) == (1e-4, 2)
    assert point.accuracy == pytest.approx(5 / 8)
    assert point.above_longer == pytest.approx(5 / 8 - 2 / 4)  # the longer answer is better in 2 of 4
    assert (point.similar, point.similar_pairs) == (pytest.approx(2 / 4), 2)  # pairs 1 and 4
    assert point.sources == {"a": 1.0, "b": pytest.approx(1 / 4)}
    # The longer answer is right in both pairs of a, and in none of b.
    assert {name: above for name, (above, _) in point.sources_above_longer.items()} == {
        "a": 0.0,
        "b": pytest.approx(1 / 4),
    }
    assert point.interval[0] <= point.accuracy <= point.interval[1]
    # Confidence sigmoid(1), or 1/2 for the tie. Log loss log(1 + e^-1) where right, 1 more where wrong.
    sure, right, coin = 1 / (1 + math.exp(-1)), math.log(1 + math.exp(-1)), math.log(2)
    losses = [(2 * right + right + 1 + coin) / 4, (3 * right + right + 1) / 4]
    assert point.log_loss == pytest.approx(sum(losses) / 2)
    errors = [3 / 4 * abs(2 / 3 - sure), abs(3 / 4 - sure)]
    assert point.calibration_error == pytest.approx(sum(errors) / 2)
    assert point.benchmark == pytest.approx(1 / 4)  # the last two pairs, of two seeds
    [without] = by_data.points([cell(1e-4, 0, [1, 1, 1, 1], benchmark=False)])
    assert math.isnan(without.benchmark)


def test_every_learning_rate_has_a_line_where_there_are_several(by_data: Any) -> None:
    first, second = by_data.by_rate(CELLS)
    assert first.startswith(
        "hybrid, 1,000 pairs, rate 0.0001, 2 seeds: validation 100.0 %, test 62.5 %, log loss"
    )
    assert second.startswith("hybrid, 1,000 pairs, rate 0.0003, 1 seeds: validation 50.0 %, test 75.0 %, log")
    assert by_data.by_rate(CELLS[:2]) == []


def test_intervals_draw_prompts(by_data: Any) -> None:
    """Right in every pair of one prompt and in none of the other: a draw of prompts has 0, 1/2 or 1."""
    result = cell(1e-4, 0, [1, 1, -1, -1])
    result["test"]["prompts"] = [1, 1, 2, 2]
    [point] = by_data.points([result])
    assert point.interval == [0.0, 1.0]
    result["test"]["prompts"] = [1, 2, 1, 2]
    [point] = by_data.points([result])
    assert point.interval == [0.5, 0.5]


def test_reliance_on_length_and_what_more_pairs_change(by_data: Any) -> None:
    """Longer answers: of pairs 1 and 2 the better one, of pair 3 the worse; pair 4 has equal lengths."""
    few, many = cell(1e-4, 0, [1, -1, -1, 1]), {**cell(1e-4, 0, [1, 1, -1, 1]), "pairs": 4000}
    fewer, more = by_data.points([few, many])
    assert (fewer.prefers_longer, more.prefers_longer) == (pytest.approx(2 / 3), 1.0)
    assert (fewer.right_where_shorter, more.right_where_shorter) == (1 / 2, 1 / 2)
    accuracy, loss = by_data.growth([fewer, more])
    assert accuracy.startswith("hybrid, 4,000 pairs less 1,000, 1 seeds: accuracy +25.000 (")
    # Pair 2 is wrong by 1 before and right by 1 after: its loss falls by log((1 + e) / (1 + 1/e)) = 1.
    assert loss.startswith("hybrid, 4,000 pairs less 1,000, 1 seeds: log loss -0.250 (")
    assert by_data.growth([fewer]) == []


def test_figures_are_of_the_pairs_that_every_cell_has(by_data: Any) -> None:
    """A cell that was scored on fewer pairs, in another order, leaves only those for both."""
    whole, part = cell(1e-4, 0, [1, 1, -1, 0]), cell(1e-4, 1, [1, 1, 1, -1])
    test = part["test"]
    for name in ("pairs", "prompts", "rows"):
        test[name] = [test[name][place] for place in (3, 1)]
    [point] = by_data.points([whole, part])
    assert point.correct_SP.tolist() == [[1.0, 0.0], [1.0, 0.0]], "pairs 2 and 4, in the order of the file"
    assert len(point.prompts_P) == 2 and point.validation_SP.shape == (2, 2)


def test_the_table_and_the_picture(by_data: Any, tmp_path: Path) -> None:
    result = by_data.points(CELLS)
    assert "| hybrid | 1,000 | 0.0001 | 2 | 2 | 100.0 | 62.5 |" in by_data.table(result), "1 and 2 minutes"
    resumed = {**CELLS[0], "training_seconds": None}  # an interrupted run has no training time
    assert "| hybrid | 1,000 | 0.0001 | 1 |  | 100.0 |" in by_data.table(by_data.points([resumed]))
    assert by_data.table(result).endswith("| 0.611 | 0.034 | 25.0 |")
    by_data.draw(result, 0.5, tmp_path / "picture.svg")
    assert "<svg" in (tmp_path / "picture.svg").read_text("utf-8")


def test_the_sides_are_compared_on_the_same_pairs_and_common_seeds(by_data: Any) -> None:
    trl = [{**cell(1e-4, 0, [1, -1, -1, 1]), "side": "trl"}]  # right: 1 and 4; ours, seed 0: 1 and 2
    assert by_data.differences(by_data.points(CELLS)) == []
    title, test, validation, loss = by_data.differences(by_data.points([*CELLS, *trl]))
    assert title == "hybrid minus TRL's RewardTrainer, 1,000 pairs, 1 seeds:"
    assert test.startswith("  accuracy on test pairs +0.000 (")
    # Validation: both of ours are right, one of TRL's.
    assert validation.startswith("  accuracy on validation pairs +50.000 (")
    # Margins 1, 1, -1, 0 and 1, -1, -1, 1. Being wrong by 1 costs 1 more; a tie costs log 2.
    right = math.log(1 + math.exp(-1))
    assert loss.startswith(f"  log loss on test pairs {(math.log(2) - 1 - right) / 4:+.3f} (")
    worse = [{**cell(1e-4, 0, [-1, -1, -1, -1]), "side": "trl"}]
    assert "+50.000 (" in by_data.differences(by_data.points([*CELLS, *worse]))[1]
    recipe = {**worse[0], "side": "bt-scaled"}
    titles = [
        line for line in by_data.differences(by_data.points([*CELLS, *worse, recipe])) if "minus" in line
    ]
    assert [line.split(",")[0] for line in titles] == [
        "hybrid minus bt-scaled",
        "hybrid minus TRL's RewardTrainer",
        "bt-scaled minus TRL's RewardTrainer",
    ]


def test_the_page_has_the_figures_of_the_cells_in_the_repository(by_data: Any) -> None:
    root = Path(__file__).parents[3]
    files = sorted((root / "benchmarks" / "by-data" / "cells").glob("*.json"))
    cells = [json.loads(file.read_text("utf-8")) for file in files]
    page = (root / "docs" / "real-data.md").read_text("utf-8")
    assert by_data.table(by_data.points(cells)) in page
