"""Columns whose meaning is easily mistaken: refused, or noted, and each fix that is offered is tried."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf.config.schema import DataSource
from rlhf.core.errors import ConfigError, DataError, UserError
from rlhf.core.records import Message, Preference
from rlhf.data.drops import DropReport
from rlhf.data.evaluation.benchmarks import load_benchmark
from rlhf.data.load import load_preferences, load_prompts

USER, ANSWERS = {"role": "user", "content": "q"}, ("a", "b", "c", "d")
PROMPT = (Message("user", "q"),)


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def load(path: str, **options: Any) -> tuple[list[Preference], DropReport]:
    return load_preferences([DataSource(path=path, **options)], seed=0, max_spread=2)


def refused(path: str, **options: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        load(path, **options)
    return caught.value


def signed(values: list[Any], column: str = "preference_strength") -> list[dict[str, Any]]:
    """Pairs `first 0` and `second 0`, and so on, with these values in a column."""
    return [
        {"prompt": "q", "response_1": f"first {n}", "response_2": f"second {n}", column: value}
        for n, value in enumerate(values)
    ]


def preferred(items: list[Preference]) -> list[str]:
    return [item.chosen for item in items]


def test_the_number_of_a_response_is_no_strength(write_rows: Any) -> None:
    """1 and 2 as strengths would prefer the second response in every row."""
    path = write_rows("rows.jsonl", signed([1, 2], "label"))
    error = refused(path, columns={"preference_strength": "label"})
    assert "winner: label" in error.fix and "strength: label" in error.fix
    items, _ = load(path, columns={"winner": "label"})
    assert preferred(items) == ["first 0", "second 1"]
    second = {"chosen": "response_2", "rejected": "response_1", "strength": "label"}
    items, _ = load(path, columns=second)
    assert [(item.chosen, abs(item.strength)) for item in items] == [("second 0", 1), ("second 1", 2)]


def test_a_tie_among_the_numbers_does_not_hide_them(write_rows: Any) -> None:
    path = write_rows("rows.jsonl", signed([0, 1, 2]))
    assert "0, 1, 2" in refused(path).found
    assert len(load(write_rows("more.jsonl", signed([1, 2, 3])))[0]) == 3
    assert len(load(write_rows("both.jsonl", signed([1, 2, -1])))[0]) == 3


def test_a_null_among_the_indices_does_not_hide_them(write_rows: Any) -> None:
    rows = [
        {"prompt": f"q {n}", "chosen": "a", "rejected": "b", "strength": value}
        for n, value in enumerate([1, None, 0])
    ]
    assert "0 and 1" in refused(write_rows("rows.jsonl", rows)).found


@pytest.mark.parametrize("values", [[0, 1], [1, 2]])
def test_a_benchmark_has_the_same_rule(write_rows: Any, values: list[int]) -> None:
    path = write_rows("rows.jsonl", signed(values))
    with pytest.raises(DataError) as caught:
        load_benchmark(path)
    assert "`winner`" in caught.value.fix
    renamed = write_rows("renamed.jsonl", signed(values, "winner"))
    assert [item.chosen for item in load_benchmark(renamed).items] == ["first 0", "second 1"]


def test_a_truth_value_is_no_winner(write_rows: Any) -> None:
    path = write_rows("rows.jsonl", signed([True, False], "better"))
    error = refused(path, columns={"winner": "better"})
    assert f"{path}:1" in error.found and "True" in error.found


def test_integers_beyond_a_float_are_errors_of_the_row(write_rows: Any) -> None:
    path = write_rows("rows.jsonl", signed([10**400], "winner"))
    assert f"{path}:1" in refused(path).found
    pair = {"prompt": "q", "chosen": "a", "rejected": "b", "m": 10**400}
    path = write_rows("margin.jsonl", [pair])
    error = refused(path, columns={"strength": "m"})
    assert error.found.startswith(f"{path}:1: ") and "'m'" in error.found


def test_decimals_of_parquet_are_numbers(tmp_path: Path) -> None:
    table = pa.table({"prompt": ["q"], "chosen": ["a"], "rejected": ["b"], "m": [Decimal("1.50")]})
    pq.write_table(table, tmp_path / "rows.parquet")
    (item,), _ = load(str(tmp_path / "rows.parquet"), columns={"strength": "m"})
    assert item.strength == -2


def test_probabilities_as_margins_are_noted(write_rows: Any) -> None:
    rows = [{"prompt": "q", "chosen": f"a{n}", "rejected": "b", "p": p} for n, p in enumerate([0.8, 0.3])]
    items, report = load(write_rows("rows.jsonl", rows), columns={"strength": "p"})
    assert [item.strength for item in items] == [-1, -1]
    assert any("'p' is at most 1" in note for note in report.notes)


def test_names_of_columns_as_chosen_are_not_texts(write_rows: Any) -> None:
    rows = [
        {"prompt": "q", "a": "left 0", "b": "right 0", "chosen": "A", "rejected": "B"},
        {"prompt": "q", "a": "left 1", "b": "right 1", "chosen": "B", "rejected": "A"},
    ]
    path = write_rows("rows.jsonl", rows)
    assert "winner: chosen" in refused(path).fix
    columns = {"prompt": "prompt", "response_1": "a", "response_2": "b", "winner": "chosen"}
    assert preferred(load(path, columns=columns)[0]) == ["left 0", "right 1"]
    # Short texts are texts where no column has their name.
    short = write_rows("short.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    assert preferred(load(short)[0]) == ["a"]


def test_scores_that_contradict_chosen_are_counted(write_rows: Any) -> None:
    rows = [
        {"prompt": "q", "chosen": f"a{n}", "rejected": "b", "score_chosen": score, "score_rejected": 5}
        for n, score in enumerate([4, 3, 5, 6])
    ]
    _, report = load(write_rows("rows.jsonl", rows))
    counts = {note.split(",")[0]: count for note, count in report.notes.items() if "score_chosen is" in note}
    assert counts == {
        "score_chosen is lower than score_rejected": 2,
        "score_chosen is equal to score_rejected": 1,
    }


@pytest.mark.parametrize(
    "columns",
    [
        {"chosen": "a", "rejected": "a"},
        {"prompt": "a", "chosen": "a", "rejected": "b"},
        {"chosen": "a", "rejected": "b", "response_1": "c", "response_2": "d"},
        {"response_1": "a", "response_2": "b", "winner": "w", "preference_strength": "s"},
        {"response_1": "a", "response_2": "b", "winner": "w", "strength": "s"},
        {"chosen": "a", "rejected": "b", "winner": "w"},
    ],
)
def test_a_map_with_two_meanings_is_refused_before_a_row_is_read(columns: dict[str, str]) -> None:
    assert isinstance(refused("/nowhere/rows.jsonl", columns=columns), ConfigError)


def test_columns_of_no_layout_are_listed_with_a_line_that_names_them(write_rows: Any) -> None:
    path = write_rows("rows.jsonl", [{"input": "q", "output": "good", "worse": "bad"}])
    error = refused(path)
    assert "input, output, worse" in error.found
    assert f"path: {path}, columns: {{prompt: COLUMN, chosen: COLUMN, rejected: COLUMN}}" in error.fix
    (item,), _ = load(path, columns={"prompt": "input", "chosen": "output", "rejected": "worse"})
    assert (item.prompt, item.chosen) == (PROMPT, "good")


def test_a_prompt_column_comes_before_other_questions(write_rows: Any) -> None:
    row = {"prompt": "q", "instruction": "x", "question": "y", "chosen": "good", "rejected": "bad"}
    (item,), report = load(write_rows("rows.jsonl", [row]))
    assert item.prompt == PROMPT
    assert "columns that are not read: instruction, question" in report.notes


@pytest.mark.parametrize("prompt", ["q", "more", " q\n"])
def test_a_prompt_that_is_a_turn_of_the_conversation(write_rows: Any, prompt: str) -> None:
    """Sets of several turns name the first or the last one in `prompt`; the system message is there, too."""
    system = {"role": "system", "content": "s"}
    row = {
        "prompt": prompt,
        "chosen": [system, *turns("q", "x", "more", "good")],
        "rejected": [system, *turns("q", "x", "more", "bad")],
    }
    (item,), _ = load(write_rows("rows.jsonl", [row]))
    assert [message.content for message in item.prompt] == ["s", "q", "x", "more"]
    other = write_rows("other.jsonl", [{**row, "prompt": "another"}])
    assert f"{other}:1" in refused(other).found


def test_roles_in_other_spellings(write_rows: Any) -> None:
    def pair(answer: str) -> list[dict[str, str]]:
        return [{"role": "User", "content": "q"}, {"role": "GPT", "content": answer}]

    (item,), _ = load(write_rows("rows.jsonl", [{"chosen": pair("good"), "rejected": pair("bad")}]))
    assert (item.prompt, item.chosen) == (PROMPT, "good")


def test_lists_of_roles_and_contents_are_messages(write_rows: Any) -> None:
    """`datasets` stores a list of objects as an object of lists."""

    def pair(answer: str) -> dict[str, list[str]]:
        return {"role": ["user", "assistant"], "content": ["q", answer]}

    (item,), _ = load(write_rows("rows.jsonl", [{"chosen": pair("good"), "rejected": pair("bad")}]))
    assert (item.prompt, item.chosen) == (PROMPT, "good")


@pytest.mark.parametrize("write", [json.dumps, str])
def test_encoded_messages_beside_a_plain_prompt(write_rows: Any, write: Any) -> None:
    """JSON, and what pandas writes into a CSV file."""
    row = {"prompt": "q", "chosen": write(turns("q", "good")), "rejected": write(turns("q", "bad"))}
    path = write_rows("rows.jsonl", [row])
    named = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
    _, report = load(path, columns=named)
    assert sum("encoding: json" in note for note in report.notes) == 2
    for options in ({}, {"encoding": "json"}, {"encoding": "json", "columns": named}):
        (item,), _ = load(path, **options)
        assert (item.prompt, item.chosen) == (PROMPT, "good")


def test_messages_as_numpy_prints_them_are_named(write_rows: Any) -> None:
    """What `Dataset.to_csv` writes: as plain text it would be trained on."""
    broken = "[{'content': 'q', 'role': 'user'}\n {'content': 'good', 'role': 'assistant'}]"
    row = {"prompt": "q", "chosen": broken, "rejected": broken.replace("good", "bad")}
    error = refused(write_rows("rows.jsonl", [row]), encoding="json")
    assert "to_json" in error.fix and "encoding: text" not in error.fix
    row = {"prompt": "q", "chosen": '[{"role": "user"', "rejected": "b"}
    assert "encoding: text" in refused(write_rows("rows.jsonl", [row]), encoding="json").fix


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('[{[]: 1}, "role"]', "not valid JSON"),
        ('[{"role": ' + "[" * 100_000, "nested too deeply"),
        ('[{"role": "user", "content": ' + "1" * 5_000 + "}]", "a number that is too long"),
    ],
)
def test_encoded_text_that_cannot_be_read_names_its_place(write_rows: Any, text: str, found: str) -> None:
    error = refused(
        write_rows("rows.jsonl", [{"prompt": text, "chosen": "a", "rejected": "b"}]), encoding="json"
    )
    assert found in error.found and "rows.jsonl:1" in error.found


def test_encoded_conversations_without_a_prompt_name_their_encoding(write_rows: Any) -> None:
    row = {"good": json.dumps(turns("q", "good")), "bad": json.dumps(turns("q", "bad"))}
    path, columns = write_rows("rows.jsonl", [row]), {"chosen": "good", "rejected": "bad"}
    assert "encoding: json" in refused(path, columns=columns).fix
    (item,), _ = load(path, columns=columns, encoding="json")
    assert (item.prompt, item.chosen) == (PROMPT, "good")


def test_the_sources_own_encoding_is_kept_where_a_layout_is_recognised(write_rows: Any) -> None:
    row = {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": "good", "rejected": "bad"}
    path = write_rows("rows.jsonl", [row])
    assert any("encoding: transcript" in note for note in load(path)[1].notes)
    (item,), report = load(path, encoding="transcript", limit=1)
    assert item.prompt == PROMPT
    (note,) = (note for note in report.notes if "pin it" in note)
    assert "encoding: transcript" in note and "limit: 1" in note


def test_text_that_a_template_rendered_is_noted(write_rows: Any) -> None:
    row = {"prompt": "<|im_start|>user\nq<|im_end|>\n", "chosen": "good", "rejected": "bad"}
    _, report = load(write_rows("rows.jsonl", [row]))
    assert any("a chat template has rendered" in note for note in report.notes)


@pytest.mark.parametrize(
    "columns",
    [
        {"system": ["s"]},
        {"system": 5},
        {"system": "s", "system_prompt": "t"},
        {"tools": '[{"type":'},
    ],
)
def test_a_system_or_tools_column_that_cannot_be_used(write_rows: Any, columns: dict[str, Any]) -> None:
    path = write_rows("rows.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b", **columns}])
    error = refused(path)
    assert error.found.startswith(f"{path}:1: ") and f"'{[*columns][-1]}'" in error.found


@pytest.mark.parametrize("field", ["reasoning", "thinking_blocks", "reasoning_details", "thoughts"])
def test_reasoning_under_a_name_that_no_template_knows_is_counted(write_rows: Any, field: str) -> None:
    chosen = [{"role": "assistant", "content": "a", field: "x"}]
    rows = [
        {"prompt": "q", "chosen": chosen, "rejected": "b"},
        {"prompt": "q", "chosen": "c", "rejected": "d"},
    ]
    items, report = load(write_rows("rows.jsonl", rows))
    assert len(items) == 1
    assert any(field in reason for reason in report.reasons)


def test_a_column_that_an_argument_of_reward_functions_hides_is_noted(write_rows: Any) -> None:
    path = write_rows("rows.jsonl", [{"prompt": "q", "completions": "x", "answer": "y"}])
    _, report = load_prompts([DataSource(path=path)])
    assert [note for note in report.notes if "'completions'" in note]
    assert not [note for note in report.notes if "'answer'" in note]


@pytest.mark.parametrize(
    ("row", "chosen"),
    [
        ({"history": "q", "human_ref_A": "x", "human_ref_B": "y", "labels": 0}, "y"),
        ({"prompt": "q", "response_0": "x", "response_1": "y", "better_response_id": 1}, "y"),
        ({"chosen": json.dumps(turns("q", "x")), "rejected": json.dumps(turns("q", "y"))}, "x"),
        ({"chosen": "\n\nHuman: q\n\nAssistant: x", "rejected": "\n\nHuman: q\n\nAssistant: y"}, "x"),
        ({"instruction": "q", "chosen": "x", "rejected": "y"}, "x"),
    ],
)
def test_a_benchmark_in_a_layout_of_preferences(write_rows: Any, row: dict[str, Any], chosen: str) -> None:
    benchmark = load_benchmark(write_rows("rows.jsonl", [row]))
    (item,) = benchmark.items
    assert (item.prompt, item.chosen, item.subset) == (PROMPT, chosen, "all")
    assert any("read as" in note for note in benchmark.drops.notes)
