from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rlhf.core.errors import DataError
from rlhf.core.records import Message
from rlhf.data.evaluation.answer_files import is_answer_file, read_answers, read_prompts

WriteRows = Callable[[str, Iterable[Mapping[str, Any]]], str]
CHECK = {"family": "words", "limit": 5, "key": "tea", "related": ["leaf"], "request": "About tea."}


def test_answers_are_read_once_a_prompt(write_rows: WriteRows) -> None:
    rows = [
        {"prompt": "Why?", "answers": ["Because.", ""], "check": CHECK, "source": "mine"},
        {"prompt": [{"role": "user", "content": "Why?"}], "answers": ["Again."]},
        {"prompt": " ", "answers": ["To nothing."]},
    ]
    result, drops = read_answers(Path(write_rows("answers.jsonl", rows)))
    assert [(item.prompt.messages, item.answers) for item in result] == [
        ((Message("user", "Why?"),), ("Because.", ""))
    ]
    assert result[0].prompt.check == CHECK and result[0].prompt.source == "mine"
    assert dict(drops.reasons) == {"duplicate": 1, "blank prompt": 1}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x", "chosen": "y"}, "prompt, chosen"),
        ({"prompt": "x", "answers": []}, "'answers'"),
        ({"prompt": "x", "answers": [1]}, "'answers', item 1 of 1"),
        ({"prompt": "x", "answers": ["y"], "check": "words"}, "'check'"),
        ({"prompt": "x", "answers": ["y"], "check": {**CHECK, "limit": 0}}, "'check'"),
        ({"prompt": "x", "answers": ["y"], "check": {**CHECK, "family": ["words"]}}, "'check'"),
    ],
)
def test_rows_of_another_shape(row: Mapping[str, Any], message: str, write_rows: WriteRows) -> None:
    with pytest.raises(DataError, match=message):
        read_answers(Path(write_rows("answers.jsonl", [row])))


def test_the_prompts_a_run_held_out(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "Why?"}]
    answers = [{"prompt": asked, "source": "demo", "check": {"family": "words"}}, {"prompt": "How?"}]
    (tmp_path / "eval.json").write_text(json.dumps({"answers": answers}))
    first, second = read_prompts(str(tmp_path))[0]
    assert first.messages == (Message("user", "Why?"),) and first.check == {"family": "words"}
    assert second.messages == (Message("user", "How?"),) and second.check is None
    (tmp_path / "eval.json").write_text(json.dumps({"overall": 0.9}))
    with pytest.raises(DataError, match="eval.json"):
        read_prompts(str(tmp_path))


def test_a_file_of_answers_is_known_by_its_name() -> None:
    assert is_answer_file("runs/a.jsonl") and is_answer_file("a.jsonl.gz")
    assert not is_answer_file("runs/policy/final") and not is_answer_file("embedded")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a.jsonl"):
        read_answers(tmp_path / "a.jsonl")
