from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

Rlhf = Callable[..., Result]

ROWS = [
    {"prompt": "Q1", "chosen": "++", "rejected": "+", "subset": "sums", "section": "Easy"},
    {"prompt": "Q2", "chosen": "+", "rejected": "...", "subset": "sums", "section": "Easy"},
    {"prompt": "Q3", "chosen": "+", "rejected": "+.", "subset": "words", "section": "Hard"},
    {"prompt": "Q4", "chosen": "+..", "rejected": "+..", "subset": "words", "section": "Hard"},
    {"prompt": "Q5", "chosen": "+ one", "rejected": "two", "subset": "words", "section": "Hard"},
]
"""By the number of "+": right, right; a tie, dropped (the same twice), right."""


def write(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.usefixtures("scorer")
def test_the_table_shows_what_the_file_says(rlhf: Rlhf, tmp_path: Path) -> None:
    write(tmp_path / "pairs.jsonl", ROWS)
    result = rlhf("evaluate-reward", "model", "--data", "pairs.jsonl", "--output", "eval.json")
    assert result.exit_code == 0, result.output
    cells = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line
    ]
    # Wilson, two of two: low = 2 / (2 + 1.96^2) = 34.2 %; one of two is symmetric: 9.5 to 90.5 %.
    assert cells[0] == ["sums", "2", "100.0", "34.2 - 100.0", "50.0", "50.0"]
    assert cells[1] == ["words", "2", "50.0", "9.5 - 90.5", "50.0", "50.0"]
    assert [row[:3] for row in cells[2:5]] == [
        ["Section Easy", "", "100.0"],
        ["Section Hard", "", "50.0"],
        ["Overall", "4", "75.0"],
    ]
    # Better answer shorter: Q2, Q3, of which the first is right; longer: Q1 and Q5.
    assert [row[:3] for row in cells[5:8]] == [
        ["the better answer is the shorter", "2", "50.0"],
        ["the better answer is the longer", "2", "100.0"],
        ["Mean of shorter and longer", "", "75.0"],
    ]
    # Rewards of the better answers: 2, 1, 1, 1; of the worse: 1, 0, 1, 0.
    assert [row[:2] for row in cells[8:]] == [["chosen", "1.25"], ["rejected", "0.50"]]
    assert "Brier score" in result.stdout
    assert "overall = mean of the sections" in result.stdout
    assert "1 of 4 pairs are ties, counted as wrong." in result.stdout
    assert "5 rows read, 4 kept, 1 dropped" in result.stdout
    assert "pairs.jsonl:4" in result.stdout

    written = json.loads((tmp_path / "eval.json").read_text())
    assert written["subsets"]["sums"]["accuracy"] == 1.0
    assert written["subsets"]["words"]["count"] == 2
    assert written["sections"] == {"Easy": 1.0, "Hard": 0.5}
    assert (written["overall"], written["length_baseline"]) == (0.75, 0.5)
    assert written["self_check"] == {"largest_difference": 0.0, "tolerance": 0.1, "count": 8}
    assert written["drops"]["read"] == 5
    assert (written["model"], written["data"]) == ("model", "pairs.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "eval_rows.jsonl").read_text().splitlines()]
    assert [row["correct"] for row in rows] == [True, True, False, True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval.json", "eval_rows.jsonl", "pairs.jsonl"]


@pytest.mark.usefixtures("scorer")
def test_a_compressed_file_reads_the_same(rlhf: Rlhf, tmp_path: Path) -> None:
    with gzip.open(tmp_path / "pairs.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in ROWS)
    result = rlhf("evaluate-reward", "model", "--data", "pairs.jsonl.gz")
    assert result.exit_code == 0, result.output
    assert "75.0" in result.stdout


@pytest.mark.usefixtures("scorer")
def test_the_demo_data_needs_no_file(rlhf: Rlhf, tmp_path: Path) -> None:
    result = rlhf("evaluate-reward", "model")
    assert result.exit_code == 0, result.output
    assert "Overall" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_pairs_too_long_for_the_model_are_reported(rlhf: Rlhf, scorer: Any, tmp_path: Path) -> None:
    scorer.longest = 4
    write(tmp_path / "pairs.jsonl", ROWS)
    result = rlhf("evaluate-reward", "model", "--data", "pairs.jsonl")
    assert result.exit_code == 0, result.output
    assert "5 rows read, 3 kept, 2 dropped" in result.stdout
    assert "allowed: at most 4 characters: comparison 4 (subset 'words')" in result.stdout


def test_scores_that_are_no_numbers_end_it_without_a_result(rlhf: Rlhf, scorer: Any, tmp_path: Path) -> None:
    scorer.reward = lambda text: float("nan") if text == "..." else 0.0
    write(tmp_path / "pairs.jsonl", ROWS)
    result = rlhf("evaluate-reward", "model", "--data", "pairs.jsonl", "--output", "eval.json")
    assert result.exit_code == 1
    assert "comparison 2 (subset 'sums')" in result.stderr and "nan" in result.stderr
    assert not (tmp_path / "eval.json").exists()


def test_scores_that_depend_on_the_batch_are_refused(rlhf: Rlhf, scorer: Any, tmp_path: Path) -> None:
    scorer.reward = lambda text: float(scorer.batches[-1])
    write(tmp_path / "pairs.jsonl", ROWS)
    result = rlhf("evaluate-reward", "model", "--data", "pairs.jsonl")
    assert result.exit_code == 2
    assert "self-check" in result.stderr
    # Alone 1, together 8: a change by 7, of what max(1, 1) allows.
    assert rlhf("evaluate-reward", "model", "--data", "pairs.jsonl", "--tolerance", "7").exit_code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["elsewhere"], "elsewhere"),
        (["model", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["model", "--data", "broken.jsonl"], "broken.jsonl:2:"),
        (["model", "--data", "half.jsonl"], "1 of 5"),
        (["model", "--output", "no/eval.json"], "--output no/eval.json"),
        (["model", "--output", "."], "--output ."),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    rlhf: Rlhf, scorer: Any, words: list[str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "broken.jsonl").write_text(json.dumps(ROWS[0]) + '\n{"prompt": \n')
    write(tmp_path / "half.jsonl", [*ROWS[:3], ROWS[0], {**ROWS[1], "section": ""}])
    result = rlhf("evaluate-reward", *words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert scorer.batches == []  # found before anything was scored


@pytest.mark.usefixtures("scorer")
@pytest.mark.parametrize(
    ("row", "kind", "seen"),
    [
        (
            {"chosen": ["+", "++", "+++"], "rejected": ["-", "+", "++"], "domain": "chat"},
            "rm-bench",
            ["│ chat    │       1 │ 100.0 │  100.0 │  0.0 │ 66.7 │", "No item of math, code, safety"],
        ),
        (
            {"chosen": ["++"], "rejected": ["+", ".", "+"], "subset": "Math"},
            "one-of-many",
            ["│ Math    │    1 │    100.0 │", "Share of right answers among the picks of n", "│ 4 │"],
        ),
        (
            {"responses": ["+", "++", "+++"], "scores": [5, 1, 3]},
            "best-of-n",
            ["picked out of n, 1 prompt ", "│ 2 │  2.333 │", "│  3.000 │ 4.333 │", "in 33.3 %"],
        ),
    ],
)
def test_other_kinds_are_known_by_their_columns(
    rlhf: Rlhf, tmp_path: Path, row: dict[str, Any], kind: str, seen: list[str]
) -> None:
    write(tmp_path / "rows.jsonl", [{"prompt": "Q", **row}])
    result = rlhf("evaluate-reward", "model", "--data", "rows.jsonl", "--output", "eval.json")
    assert result.exit_code == 0, result.output
    for text in seen:
        assert text in result.stdout
    written = json.loads((tmp_path / "eval.json").read_text())
    assert (written["kind"], written["count"]) == (kind, 1)
    assert json.loads((tmp_path / "eval_rows.jsonl").read_text())["id"] == 1


def test_a_wrong_domain_is_one_message_before_anything_is_scored(
    rlhf: Rlhf, scorer: Any, tmp_path: Path
) -> None:
    row = {"prompt": "Q", "chosen": ["a"] * 3, "rejected": ["b"] * 3, "domain": "poetry"}
    write(tmp_path / "rows.jsonl", [row])
    result = rlhf("evaluate-reward", "model", "--data", "rows.jsonl")
    assert result.exit_code == 2
    assert "rows.jsonl:1:" in result.stderr and "'poetry'" in result.stderr
    assert scorer.batches == []
