"""The judges' files, by small ones written here in their schema."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rlhf.core.errors import DataError
from rlhf.core.records import Message
from rlhf.data.evaluation.judge_formats import (
    FORMATS,
    MT_BENCH_TEMPERATURES,
    Reply,
    answer_text,
    load_questions,
)

WriteRows = Callable[[str, Iterable[Mapping[str, Any]]], str]

MT_BENCH = [
    {"question_id": 81, "category": "writing", "turns": ["Describe a lamp.", "Now in one word."]},
    {
        "question_id": 82,
        "category": "math",
        "turns": ["What is 2 + 3?", "And its square?"],
        "reference": ["5", "25"],
    },
    {"question_id": 83, "category": "gardening", "turns": ["When do roses bloom?", "Why?"]},
]
ARENA_1 = [
    {
        "question_id": "a1",
        "category": "arena-hard-v0.1",
        "cluster": "Tea",
        "turns": [{"content": "Brew tea."}],
    }
]
ARENA_2 = [
    {"uid": "b1", "category": "hard_prompt", "subcategory": "coding", "prompt": "Sort a list."},
    {"uid": "b2", "category": "creative_writing", "subcategory": "poem", "prompt": "A poem on rain."},
]
ALPACA = [
    {
        "instruction": "Name a river.",
        "output": "The Rhine.",
        "generator": "someone",
        "dataset": "helpful_base",
    },
    {"instruction": "Name a river.", "output": "The Nile.", "generator": "someone", "dataset": "koala"},
]


def reply(*turns: str) -> Reply:
    return Reply(turns, (True,) * len(turns), (3,) * len(turns))


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_mt_bench_has_two_turns_and_the_judges_temperatures(write_rows: WriteRows) -> None:
    questions, drops = load_questions(write_rows("question.jsonl", MT_BENCH), "mt-bench")
    assert [question.prompt for question in questions] == [
        (Message("user", row["turns"][0]),) for row in MT_BENCH
    ]
    assert [question.later for question in questions] == [
        ("Now in one word.",),
        ("And its square?",),
        ("Why?",),
    ]
    # FastChat: 0.7 for writing, 0 for math, and 0.7 for a category that its table lacks.
    assert [question.temperature for question in questions] == [0.7, 0.0, None] and FORMATS[
        "mt-bench"
    ].temperature == 0.7
    assert MT_BENCH_TEMPERATURES["stem"] == MT_BENCH_TEMPERATURES["humanities"] == 0.1
    assert (drops.read, drops.kept) == (3, 3)


def test_mt_bench_answers_have_fastchats_keys(write_rows: WriteRows) -> None:
    questions, _ = load_questions(write_rows("question.jsonl", MT_BENCH), "mt-bench")
    replies = [reply("A lamp glows.", "Light."), reply("A lamp!", "Lamp.")]
    (row,) = lines(answer_text("mt-bench", [(questions[0], replies)], "mine"))
    assert list(row) == ["question_id", "answer_id", "model_id", "choices", "tstamp"]
    assert row["question_id"] == 81 and row["model_id"] == "mine"
    assert row["choices"] == [
        {"index": 0, "turns": ["A lamp glows.", "Light."]},
        {"index": 1, "turns": ["A lamp!", "Lamp."]},
    ]
    assert len(row["answer_id"]) == 22 and isinstance(row["tstamp"], float)


def test_arena_hard_in_its_first_form(write_rows: WriteRows) -> None:
    (question,), _ = load_questions(write_rows("question.jsonl", ARENA_1), "arena-hard")
    assert question.prompt == (Message("user", "Brew tea."),) and not question.later
    assert question.temperature is None and FORMATS["arena-hard"].temperature == 0.0
    (row,) = lines(answer_text("arena-hard", [(question, [reply("Boil water.")])], "mine"))
    assert list(row) == ["question_id", "answer_id", "model_id", "choices", "tstamp"]
    assert row["question_id"] == "a1"
    assert row["choices"] == [{"index": 0, "turns": [{"content": "Boil water."}]}]


def test_arena_hard_in_its_present_form(write_rows: WriteRows) -> None:
    questions, _ = load_questions(write_rows("question.jsonl", ARENA_2), "arena-hard")
    answered = [(question, [reply(f"Answer {number}.")]) for number, question in enumerate(questions)]
    rows = lines(answer_text("arena-hard", answered, "mine"))
    assert [list(row) for row in rows] == [["uid", "ans_id", "model", "messages", "tstamp"]] * 2
    assert [row["uid"] for row in rows] == ["b1", "b2"] and rows[0]["ans_id"] != rows[1]["ans_id"]
    assert rows[1]["messages"] == [
        {"role": "user", "content": "A poem on rain."},
        {"role": "assistant", "content": {"answer": "Answer 1."}},
    ]


def test_alpaca_eval_is_one_array_and_keeps_questions_asked_twice(tmp_path: Path) -> None:
    file = tmp_path / "alpaca_eval.json"
    file.write_text(json.dumps(ALPACA))
    questions, drops = load_questions(str(file), "alpaca-eval")
    assert drops.kept == 2
    text = answer_text("alpaca-eval", [(question, [reply("The Po.")]) for question in questions], "mine")
    assert json.loads(text) == [
        {"instruction": "Name a river.", "output": "The Po.", "generator": "mine", "dataset": "helpful_base"},
        {"instruction": "Name a river.", "output": "The Po.", "generator": "mine", "dataset": "koala"},
    ]


def test_prompts_of_our_own_come_back_with_their_answers(write_rows: WriteRows) -> None:
    check = {"family": "words", "limit": 7, "key": "tea", "related": [], "request": "Why?"}
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    rows = [{"ask": "Why?", "source": "mine"}, {"ask": system, "check": check}]
    file = write_rows("prompts.jsonl", rows)
    questions, _ = load_questions(file, "jsonl", {"prompt": "ask"})
    two = [Reply(("Because.",), (True,), (4,)), Reply(("Well, ",), (False,), (8,))]
    first, second = lines(answer_text("jsonl", [(questions[0], two), (questions[1], two[:1])], "mine"))
    assert first == {
        "prompt": [{"role": "user", "content": "Why?"}],
        "answers": ["Because.", "Well, "],
        "finished": [True, False],
        "tokens": [4, 8],
        "model": "mine",
        "source": "mine",
    }
    assert second["prompt"] == system and second["check"] == check and second["source"] == file


@pytest.mark.parametrize("name", ["mt-bench", "arena-hard", "alpaca-eval"])
@pytest.mark.parametrize(
    ("result", "row"),
    [
        ("mt-bench", MT_BENCH[0]),
        ("arena-hard", ARENA_1[0]),
        ("arena-hard", ARENA_2[0]),
        ("alpaca-eval", ALPACA[0]),
    ],
)
def test_a_file_of_another_judge_is_recognised(
    name: str, result: str, row: Mapping[str, Any], write_rows: WriteRows
) -> None:
    file = write_rows("question.jsonl", [row])
    if name == result:
        assert len(load_questions(file, name)[0]) == 1
        return
    with pytest.raises(DataError) as error:
        load_questions(file, name)
    message = str(error.value)
    assert f"{file}:1" in message and f"no question of {name}, but as in {result}" in message
    assert FORMATS[name].looks in message and f"--format {result}" in message


def test_a_row_that_is_nobodys_question_says_its_columns(write_rows: WriteRows) -> None:
    with pytest.raises(DataError, match="title, body.* mt-bench"):
        load_questions(write_rows("question.jsonl", [{"title": "x", "body": "y"}]), "mt-bench")


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("mt-bench", {"question_id": 1, "category": "math", "turns": ["a", 7]}, "'turns'"),
        ("mt-bench", {"question_id": 1, "turns": ["a", "b"]}, "'category'"),
        ("arena-hard", {"uid": "x", "prompt": ["a"]}, "'prompt'"),
        ("arena-hard", {"question_id": 1, "turns": [{"text": "a"}]}, "'turns'"),
        ("alpaca-eval", {"instruction": 7}, "'instruction'"),
    ],
)
def test_a_malformed_question_stops_with_its_place(
    name: str, row: Mapping[str, Any], message: str, write_rows: WriteRows
) -> None:
    file = write_rows("question.jsonl", [row])
    with pytest.raises(DataError, match=message) as error:
        load_questions(file, name)
    assert f"{file}:1" in error.value.found


def test_unusable_questions_are_counted_with_their_place(write_rows: WriteRows) -> None:
    blank = {"question_id": 90, "category": "math", "turns": ["What?", "  "]}
    file = write_rows("question.jsonl", [MT_BENCH[0], blank, MT_BENCH[0]])
    questions, drops = load_questions(file, "mt-bench")
    assert [question.key for question in questions] == ["81"]
    assert drops.examples == {"blank prompt": [f"{file}:2"], "duplicate": [f"{file}:3"]}


def test_an_unknown_format_lists_the_known_ones() -> None:
    with pytest.raises(DataError) as error:
        load_questions("question.jsonl", "mtbench")
    assert "--format mtbench" in error.value.found and "'mt-bench'" in error.value.found
    assert "mt-bench, arena-hard, alpaca-eval, jsonl" in error.value.allowed


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none.jsonl"):
        load_questions(str(tmp_path / "none.jsonl"), "mt-bench")
