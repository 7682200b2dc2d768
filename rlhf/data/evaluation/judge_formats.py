"""Read the question files of public judges, and write answers as their own scripts do.

    mt-bench     FastChat's llm_judge: question.jsonl -> model_answer/MODEL.jsonl, two turns
    arena-hard   Arena-Hard-Auto, v0.1's first form (turns) and today's (uid, prompt), recognised by the rows
    alpaca-eval  AlpacaEval: alpaca_eval.json -> model_outputs.json
    jsonl        prompts of our own (see `rlhf.data.load`) -> {"prompt", "answers", "finished", "tokens"}

Sources, read at these commits: lm-sys/FastChat 0e6d3e4, fastchat/llm_judge/{common,gen_model_answer}.py;
lmarena/arena-hard-auto 196f6b8 and, for the first form, 8fd0c83, gen_answer.py, gen_judgment.py and
config/gen_answer_config.yaml; tatsu-lab/alpaca_eval cd543a1, main.py and decoders/openai.py.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.config.schema import DataSource
from rlhf.core.errors import DataError, did_you_mean
from rlhf.core.records import Conversation, Message, Prompt
from rlhf.data import rules
from rlhf.data.drops import DropReport
from rlhf.data.load import load_prompts, read_records, require_some
from rlhf.data.sources.files import file_rows, missing_path
from rlhf.data.sources.rows import DEMO, Row

MT_BENCH_TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
    "arena-hard-200": 0.0,
}
"""`temperature_config` of FastChat's common.py; a category that is not here is answered at 0.7."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question of one or more turns; `values` is its row, and `place` the row's place in the file."""

    key: str
    place: str
    prompt: Conversation
    later: tuple[str, ...] = ()
    """What the user says after the first answer, and so on."""
    temperature: float | None = None
    """What the judge fixes for this question."""
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer to a question, turn by turn."""

    turns: tuple[str, ...]
    finished: tuple[bool, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Format:
    """How a judge's questions are read and answered.

    Attributes:
        read: a row as a question; None where the project's own readers of prompts do it.
        write: a question and the replies to it as a row of the answer file, by a model of this name.
        looks: what the columns of a row of this format are, in words.
        temperature: where the question fixes none.
        strip: white space around an answer goes, as in the judge's own script.
        array: one JSON array, not one object a line.
        named_by_file: the judge takes the file's name for the model's.
        several: the file can hold several answers to a question.
    """

    read: Callable[[Row], Question] | None
    write: Callable[[Question, Sequence[Reply], str], dict[str, Any]]
    looks: str
    temperature: float
    max_new_tokens: int
    strip: bool = True
    array: bool = False
    named_by_file: bool = True
    several: bool = True


def load_questions(
    path: str, name: str, columns: Mapping[str, str] | None = None
) -> tuple[list[Question], DropReport]:
    """The questions of a file, and what was left out.

    Args:
        path: a file; for `jsonl` also `demo`, a folder or a Hugging Face name.
        name: a key of `FORMATS`.
        columns: for `jsonl`, our names of a prompt's columns -> the file's.

    Raises:
        DataError: an unknown format, a file of another format, a malformed row, or nothing left.
    """
    if name not in FORMATS:
        raise DataError(
            f"--format {name} is not known.{did_you_mean(name, FORMATS)}", allowed=", ".join(FORMATS)
        )
    form = FORMATS[name]
    if form.read is None:
        prompts, report = load_prompts([DataSource(path=path, columns=dict(columns or {}))])
        return [own_question(number, prompt) for number, prompt in enumerate(prompts, 1)], report
    if path == DEMO:
        raise DataError("`demo` holds prompts of this project.", allowed=f"a question file for {name}")
    if not Path(path).is_file():
        raise missing_path(Path(path))
    rows = (Row(place, values) for place, values in file_rows(Path(path)))
    report = DropReport()
    # The readers of MT-Bench's and Arena-Hard's files keep the last answer of an id; AlpacaEval's has no id.
    key: Callable[[Question], Hashable] | None = (
        None if name == "alpaca-eval" else lambda question: question.key
    )
    read = _checked(name, form.read)
    questions = list(read_records(rows, read, report, key=key, seen=set()))
    require_some(questions, "questions", [path], report)
    return questions, report


def own_question(number: int, prompt: Prompt) -> Question:
    """A prompt of our own as a question."""
    values = {"source": prompt.source, "check": prompt.check}
    return Question(str(number), f"prompt {number} of {prompt.source}", prompt.messages, values=values)


def answer_text(name: str, answered: Iterable[tuple[Question, Sequence[Reply]]], model: str) -> str:
    """The whole answer file."""
    form = FORMATS[name]
    rows = [form.write(question, replies, model) for question, replies in answered]
    if form.array:
        return json.dumps(rows, ensure_ascii=False, indent=2) + "\n"
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _checked(name: str, read: Callable[[Row], Question]) -> Callable[[Row], Question]:
    """A reader that, of a row of another format, says which one it looks like."""

    def checked(row: Row) -> Question:
        if not isinstance(row.values, Mapping):
            raise DataError(f"{row.place}: no JSON object", allowed=FORMATS[name].looks)
        detected = looks_like(row)
        if detected != name:
            columns = ", ".join(row.values) or "none"
            raise DataError(
                f"{row.place}: the columns are {columns}, and no question of {name}"
                + (f", but as in {detected}" if detected else ""),
                allowed=FORMATS[name].looks,
                fix=f"--format {detected}" if detected else "give the judge's own question file",
            )
        question = read(row)
        for text in (question.prompt[-1].content, *question.later):
            rules.require_prompt((Message("user", text),))
        return question

    return checked


def looks_like(row: Row) -> str | None:
    """The format whose questions have this row's columns, or None."""
    turns = row.find("turns")
    if isinstance(turns, list) and row.find("question_id") is not None:
        return "arena-hard" if turns and isinstance(turns[0], dict) else "mt-bench"
    if row.find("uid") is not None and row.find("prompt") is not None:
        return "arena-hard"
    if row.find("instruction") is not None:
        return "alpaca-eval"
    return "jsonl" if row.find("prompt") is not None else None


def _mt_bench_question(row: Row) -> Question:
    turns, category = row.get("turns"), row.text("category")
    if not turns or not all(isinstance(turn, str) for turn in turns):
        raise row.wrong_item(
            "turns", "a list of the user's messages, one per turn", lambda turn: isinstance(turn, str)
        )
    return Question(
        str(row.get("question_id")),
        row.place,
        (Message("user", turns[0]),),
        tuple(turns[1:]),
        MT_BENCH_TEMPERATURES.get(category),
        row.values,
    )


def _arena_question(row: Row) -> Question:
    if row.find("uid") is not None:
        return Question(row.text("uid"), row.place, (Message("user", row.text("prompt")),), values=row.values)
    turns = [turn.get("content") if isinstance(turn, dict) else None for turn in row.get("turns")]
    if not turns or not all(isinstance(turn, str) for turn in turns):
        raise row.wrong_item(
            "turns",
            'a list of {"content": the user\'s message}',
            lambda turn: isinstance(turn, dict) and isinstance(turn.get("content"), str),
        )
    first, *later = map(str, turns)
    category = row.find("category")
    return Question(
        str(row.get("question_id")),
        row.place,
        (Message("user", first),),
        tuple(later),
        MT_BENCH_TEMPERATURES.get(str(category)),  # that script has the same table
        row.values,
    )


def _alpaca_question(row: Row) -> Question:
    return Question(row.place, row.place, (Message("user", row.text("instruction")),), values=row.values)


def _mt_bench_answer(question: Question, replies: Sequence[Reply], model: str) -> dict[str, Any]:
    choices = [{"index": index, "turns": list(reply.turns)} for index, reply in enumerate(replies)]
    return _with_choices(question, choices, model)


def _arena_answer(question: Question, replies: Sequence[Reply], model: str) -> dict[str, Any]:
    """Arena-Hard's add_markdown_info.py adds `metadata`, which its style control needs."""
    if "uid" not in question.values:
        choices = [
            {"index": index, "turns": [{"content": turn} for turn in reply.turns]}
            for index, reply in enumerate(replies)
        ]
        return _with_choices(question, choices, model)
    (reply,) = replies
    return {
        "uid": question.values["uid"],
        "ans_id": _answer_id(question, replies, model),
        "model": model,
        "messages": [
            {"role": "user", "content": question.prompt[-1].content},
            {"role": "assistant", "content": {"answer": reply.turns[0]}},
        ],
        "tstamp": time.time(),
    }


def _with_choices(question: Question, choices: list[dict[str, Any]], model: str) -> dict[str, Any]:
    return {
        "question_id": question.values["question_id"],
        "answer_id": _answer_id(question, choices, model),
        "model_id": model,
        "choices": choices,
        "tstamp": time.time(),
    }


def _answer_id(question: Question, answer: object, model: str) -> str:
    """22 letters and digits, as long as the judges' own random ones; the same for the same answer."""
    return hashlib.sha256(
        repr((question.key, answer, model)).encode("utf-8", "backslashreplace")
    ).hexdigest()[:22]


def _alpaca_answer(question: Question, replies: Sequence[Reply], model: str) -> dict[str, Any]:
    (reply,) = replies
    kept = {name: question.values[name] for name in ("dataset", "datasplit") if name in question.values}
    return {
        "instruction": question.prompt[-1].content,
        "output": reply.turns[0],
        "generator": model,
        **kept,
    }


def _own_answer(question: Question, replies: Sequence[Reply], model: str) -> dict[str, Any]:
    kept = {name: value for name, value in question.values.items() if value}
    return {
        "prompt": [message.as_dict() for message in question.prompt],
        "answers": [reply.turns[0] for reply in replies],
        "finished": [reply.finished[0] for reply in replies],
        "tokens": [reply.tokens[0] for reply in replies],
        "model": model,
        **kept,
    }


FORMATS: Mapping[str, Format] = {
    "mt-bench": Format(
        _mt_bench_question,
        _mt_bench_answer,
        '{"question_id", "category", "turns": [TEXT, TEXT]} a line',
        temperature=0.7,
        max_new_tokens=1024,
    ),
    "arena-hard": Format(
        _arena_question,
        _arena_answer,
        '{"uid", "category", "prompt": TEXT} a line, or {"question_id", "category", "turns": [{"content": '
        "TEXT}]}",
        temperature=0.0,
        max_new_tokens=4096,
        several=False,
    ),
    "alpaca-eval": Format(
        _alpaca_question,
        _alpaca_answer,
        'a JSON array of {"instruction": TEXT, "dataset": NAME}',
        temperature=0.7,
        max_new_tokens=2048,
        array=True,
        named_by_file=False,
        several=False,
    ),
    "jsonl": Format(
        None,
        _own_answer,
        '{"prompt": TEXT or MESSAGES} a line',
        temperature=1.0,
        max_new_tokens=256,
        strip=False,
        named_by_file=False,
    ),
}
"""Formats by name, with the defaults of FastChat's and Arena-Hard's scripts and AlpacaEval's decoder."""
