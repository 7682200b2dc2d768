from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import csv, parquet
from typer.testing import Result

from rlhf.core.errors import RefusalError

Rlhf = Callable[..., Result]


def line(answer: str, **others: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Well?"}, {"role": "assistant", "content": answer}]
    return {"messages": messages, **others}


def write(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(path: Path) -> list[Any]:
    return [json.loads(text) for text in path.read_text().splitlines()]


@pytest.mark.usefixtures("scorer")
def test_every_line_comes_back_with_its_own_keys(rlhf: Rlhf, tmp_path: Path) -> None:
    first = line("++", id=7, note={"deep": [None, "grün", "\ud83d"]})
    second = {**line("+", reward="old"), "attributes": "old"}
    write(tmp_path / "in.jsonl", [first, second])
    result = rlhf("score", "model", "--input", "in.jsonl", "--output", "out.jsonl")
    assert result.exit_code == 0, result.output
    assert "Wrote 2 scores to out.jsonl." in result.stdout
    assert read(tmp_path / "out.jsonl") == [
        {**first, "reward": 2.0, "attributes": {"turns": 2.0}},
        {**second, "reward": 1.0, "attributes": {"turns": 2.0}},
    ]


def test_a_long_file_passes_in_chunks_and_keeps_its_order(rlhf: Rlhf, scorer: Any, tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", [line("+" * (i % 7), id=i) for i in range(150)])
    assert rlhf("score", "model", "--input", "in.jsonl", "--output", "out.jsonl").exit_code == 0
    assert scorer.batches == [64, 64, 22]
    assert [(row["id"], row["reward"]) for row in read(tmp_path / "out.jsonl")] == [
        (i, float(i % 7)) for i in range(150)
    ]


def test_form_and_label_are_handed_on(rlhf: Rlhf, scorer: Any, tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", [line("+")])
    words = ("score", "model", "--input", "in.jsonl", "--output", "out.jsonl")
    assert rlhf(*words).exit_code == 0 and scorer.options == ("auto", None)
    assert rlhf(*words, "--form", "classifier", "--label", "help").exit_code == 0
    assert scorer.options == ("classifier", "help") and scorer.tokens_per_batch is None
    assert rlhf(*words, "--tokens-per-batch", "4096").exit_code == 0
    assert scorer.tokens_per_batch == 4096


@pytest.mark.usefixtures("scorer")
def test_compressed_files_in_and_out(rlhf: Rlhf, tmp_path: Path) -> None:
    with gzip.open(tmp_path / "in.jsonl.gz", "wt") as file:
        file.write(json.dumps(line("+++")) + "\n\n")
    assert rlhf("score", "model", "--input", "in.jsonl.gz", "--output", "out.jsonl.gz").exit_code == 0
    with gzip.open(tmp_path / "out.jsonl.gz", "rt") as file:
        assert [json.loads(text)["reward"] for text in file] == [3.0]


@pytest.mark.parametrize("kind", ["csv", "parquet", "json"])
@pytest.mark.usefixtures("scorer")
def test_other_kinds_of_files(rlhf: Rlhf, tmp_path: Path, kind: str) -> None:
    table = pa.table({"prompt": ["Well?", "So?"], "completion": ["++", "+"], "id": [7, 8]})
    if kind == "parquet":
        parquet.write_table(table, tmp_path / "in.parquet")
    elif kind == "csv":
        csv.write_csv(table, tmp_path / "in.csv")
    else:
        (tmp_path / "in.json").write_text(json.dumps(table.to_pylist()))
    result = rlhf("score", "model", "--input", f"in.{kind}", "--output", "out.jsonl")
    assert result.exit_code == 0, result.output
    rows = read(tmp_path / "out.jsonl")
    assert [(row["prompt"], int(row["id"]), row["reward"]) for row in rows] == [
        ("Well?", 7, 2.0),
        ("So?", 8, 1.0),
    ]


@pytest.mark.usefixtures("scorer")
def test_a_prompt_and_its_response_are_a_conversation(rlhf: Rlhf, tmp_path: Path) -> None:
    turns = line("+")["messages"]
    rows = [
        {"prompt": "Well?", "response": "+"},
        {"prompt": turns[:1], "completion": turns[1:]},  # TRL's conversational form
        {"system": "Be kind.", "prompt": "Well?", "response": "+"},
    ]
    write(tmp_path / "in.jsonl", rows)
    assert rlhf("score", "model", "--input", "in.jsonl", "--output", "out.jsonl").exit_code == 0
    scored = read(tmp_path / "out.jsonl")
    assert [(row["reward"], row["attributes"]["turns"]) for row in scored] == [
        (1.0, 2.0),
        (1.0, 2.0),
        (1.0, 3.0),
    ]


BAD_LINES = {
    '{"messages": [': "in.jsonl:2:",
    '["messages"]': "not an object",
    '{"prompt": "x"}': "`messages`",
    '{"messages": "x"}': "user",  # a string is a turn of the user
    '{"response": "x"}': "'prompt'",
    '{"prompt": "x", "response": "y", "image": "z.png"}': "image",
    '{"messages": []}': "empty",
    '{"messages": [{"role": "user", "content": "x"}]}': "user",
    '{"messages": [{"role": "bot", "content": "x"}]}': "'messages'",
    '{"messages": [{"role": "assistant", "content": 3}]}': "'messages'",
    json.dumps(line("+", weight=float("nan"))): "JSON",
}


@pytest.mark.parametrize("bad", BAD_LINES)
def test_a_malformed_line_is_named_before_anything_is_scored(
    rlhf: Rlhf, scorer: Any, tmp_path: Path, bad: str
) -> None:
    (tmp_path / "in.jsonl").write_text(f"{json.dumps(line('+'))}\n{bad}\n")
    result = rlhf("score", "model", "--input", "in.jsonl", "--output", "out.jsonl")
    assert result.exit_code == 2
    assert "in.jsonl:2:" in result.stderr and BAD_LINES[bad] in result.stderr
    assert scorer.batches == []
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_failure_half_way_leaves_the_older_output_alone(rlhf: Rlhf, scorer: Any, tmp_path: Path) -> None:
    scorer.longest = 4
    write(tmp_path / "in.jsonl", [*[line("+")] * 70, line("too long")])
    (tmp_path / "out.jsonl").write_text("older\n")
    result = rlhf("score", "model", "--input", "in.jsonl", "--output", "out.jsonl")
    assert result.exit_code == 2
    assert "in.jsonl:71:" in result.stderr and "4 characters" in result.stderr
    assert (tmp_path / "out.jsonl").read_text() == "older\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_a_reward_that_is_no_number_is_a_failed_run(rlhf: Rlhf, scorer: Any, tmp_path: Path) -> None:
    scorer.reward = lambda text: float("inf") if text == "++" else 0.0
    write(tmp_path / "in.jsonl", [line("+"), line("++")])
    result = rlhf("score", "model", "--input", "in.jsonl", "--output", "out.jsonl")
    assert result.exit_code == 1
    assert "in.jsonl:2:" in result.stderr and "inf" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    ("input_", "output", "message"),
    [
        ("nowhere.jsonl", "out.jsonl", "nowhere.jsonl"),
        ("empty.jsonl", "out.jsonl", "empty.jsonl:1:"),
        ("in.txt", "out.jsonl", "in.txt"),
        ("in.jsonl", "in.jsonl", "in.jsonl"),
        ("in.jsonl", "no/out.jsonl", "--output no/out.jsonl"),
        ("in.jsonl", ".", "--output ."),
    ],
)
@pytest.mark.usefixtures("scorer")
def test_a_mistake_is_one_message_and_exit_code_2(
    rlhf: Rlhf, tmp_path: Path, input_: str, output: str, message: str
) -> None:
    for name, text in {"in.jsonl": json.dumps(line("+")), "empty.jsonl": "\n", "in.txt": "hello"}.items():
        (tmp_path / name).write_text(text)
    result = rlhf("score", "model", "--input", input_, "--output", output)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_a_conversation_that_the_template_refuses_is_named_by_its_line(
    rlhf: Rlhf, scorer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of such a conversation has arguments of its own."""
    score = type(scorer).score

    def refusing(self: Any, conversations: Any) -> Any:
        if any(conversation[-1].content == "tool" for conversation in conversations):
            raise RefusalError("refused by the template")
        return score(self, conversations)

    monkeypatch.setattr(type(scorer), "score", refusing)
    write(tmp_path / "in.jsonl", [line("+"), line("tool")])
    result = rlhf("score", "model", "--input", "in.jsonl", "--output", "out.jsonl")
    assert result.exit_code == 2, result.output
    assert "in.jsonl:2:" in result.stderr and "refused by the template" in result.stderr
