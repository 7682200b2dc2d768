"""The four kinds of benchmark rows, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.core.errors import DataError
from rlhf.core.records import Candidates, Choice, Comparison, Message
from rlhf.data.evaluation import benchmarks
from rlhf.data.evaluation.benchmarks import kind_of, load_benchmark
from rlhf.data.sources.rows import Row

PAIR = {"prompt": "Q", "chosen": "a", "rejected": "b", "subset": "s"}
STYLED = {"prompt": "Q", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"], "domain": "chat"}
MANY = {"prompt": "Q", "chosen": ["a"], "rejected": ["b", "c", "d"], "subset": "Math"}
RATED = {"prompt": "Q", "responses": ["a", "b"], "scores": [1, 0.5]}
TURNS = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "a"}]


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (PAIR, "pairs"),
        ({**PAIR, "chosen": TURNS, "rejected": TURNS}, "pairs"),  # messages are one answer
        ({**PAIR, "domain": "chat"}, "pairs"),
        (STYLED, "rm-bench"),
        (MANY, "one-of-many"),
        (RATED, "best-of-n"),
    ],
)
def test_the_columns_say_what_a_row_is(row: dict[str, Any], kind: str) -> None:
    assert kind_of(Row("here", row)) == kind


def test_each_kind_becomes_its_record(tmp_path: Path) -> None:
    prompt = (Message("user", "Q"),)
    expected = {
        "pairs": (PAIR, Comparison(prompt, "a", "b", "s")),
        "rm-bench": (STYLED, Choice(prompt, ("a", "b", "c"), ("d", "e", "f"), "chat")),
        "one-of-many": (MANY, Choice(prompt, ("a",), ("b", "c", "d"), "Math")),
        "best-of-n": (RATED, Candidates(prompt, ("a", "b"), (1.0, 0.5), "all")),
    }
    for kind, (row, record) in expected.items():
        result = load_benchmark(write(tmp_path / f"{kind}.jsonl", row, row))
        assert (result.kind, list(result.items)) == (kind, [record, record])
        assert result.drops.read == 2


def test_a_json_array_reads_the_same(tmp_path: Path) -> None:
    (tmp_path / "all.json").write_text(json.dumps([STYLED]))
    assert load_benchmark(str(tmp_path / "all.json")).kind == "rm-bench"


@pytest.mark.parametrize(
    ("word", "name"),
    [("rewardbench2", "rewardbench-2"), ("rm_bench", "rm-bench"), ("judge-bench", "judgebench")],
)
def test_a_misspelt_name_is_no_data_set_of_the_hub(word: str, name: str) -> None:
    with pytest.raises(DataError) as caught:
        load_benchmark(word)
    assert f"Did you mean {name!r}?" in caught.value.found
    assert "ppe-math" in caught.value.allowed


def test_names_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def rows(source: Any, *, seed: int) -> Any:
        asked.append((source.path, source.split))
        return iter([Row("hub: row 1", STYLED)])

    monkeypatch.setattr(benchmarks, "read_rows", rows)
    for name in ("rm-bench", "THU-KEG/RM-Bench", "rewardbench-2"):
        assert load_benchmark(name).kind == "rm-bench"
    assert asked[::2] == [("THU-KEG/RM-Bench", "train")] * 2 + [("allenai/reward-bench-2", "test")]


def test_the_demo_is_pairs() -> None:
    assert load_benchmark("demo").kind == "pairs"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {**STYLED, "domain": "maths"},
            r"'maths'.* 'math'.*\n.*chat, math, code",
        ),
        (
            {**STYLED, "chosen": ["a", "b"]},
            r"'chosen' .*2 .*\n.*\b3 ",
        ),
        ({**STYLED, "rejected": ["a", None, "c"]}, "'rejected', item 2 of 3,.* None"),
        ({**MANY, "rejected": "b"}, "'rejected' .*'b'"),
        ({**MANY, "chosen": []}, r"'chosen' .*\[\]"),
        ({**RATED, "scores": [1]}, "'scores'"),
        ({**RATED, "scores": [1, float("nan")]}, "'scores'"),
        ({**RATED, "scores": None}, "'scores'"),
        ({"prompt": "Q", "answer": "a"}, "prompt, answer"),
    ],
)
def test_a_malformed_row_names_its_place(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", row)
    with pytest.raises(DataError, match=f"(?s)rows.jsonl:1: .*{message}"):
        load_benchmark(path)


def test_a_second_row_of_another_kind_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="rows.jsonl:2: .*'domain'"):
        load_benchmark(write(tmp_path / "rows.jsonl", STYLED, MANY))


def test_rows_of_no_use_are_counted(tmp_path: Path) -> None:
    lonely = {**RATED, "responses": ["a"], "scores": [1]}
    result = load_benchmark(write(tmp_path / "rows.jsonl", RATED, lonely, {**RATED, "prompt": " "}))
    assert dict(result.drops.reasons) == {"fewer than two responses": 1, "blank prompt": 1}
    with pytest.raises(DataError, match="none.jsonl"):
        load_benchmark(write(tmp_path / "none.jsonl", lonely))


@pytest.mark.parametrize(
    ("columns", "strength"),
    [({}, None), ({"strength": 3}, 3), ({"preference_strength": -2}, 2), ({"strength": 1.0}, 1)],
)
def test_the_strength_of_a_pair(columns: dict[str, Any], strength: int | None, tmp_path: Path) -> None:
    (item,) = load_benchmark(write(tmp_path / "rows.jsonl", {**PAIR, **columns})).items
    assert item.strength == strength


def test_a_strength_out_of_range_or_of_zero(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'strength' .*4") as caught:
        load_benchmark(write(tmp_path / "rows.jsonl", {**PAIR, "strength": 4}))
    assert "0" in caught.value.allowed and "3" in caught.value.allowed
    result = load_benchmark(write(tmp_path / "rows.jsonl", PAIR, {**PAIR, "strength": 0}))
    assert dict(result.drops.reasons) == {"tie (strength 0)": 1}
