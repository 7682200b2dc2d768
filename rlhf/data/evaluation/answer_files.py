"""Read files of answers: those of `rlhf generate --format jsonl`, or any rows of a prompt and its answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.core.errors import DataError
from rlhf.core.records import Prompt
from rlhf.data import rules
from rlhf.data.checks import check_fault
from rlhf.data.drops import DropReport
from rlhf.data.load import load_prompts, read_records, require_some
from rlhf.data.readers.messages import read_prompt
from rlhf.data.sources.files import file_rows
from rlhf.data.sources.rows import DEMO, Row

SHAPE = (
    '{"prompt": TEXT or MESSAGES, "answers": [TEXT, ...]} a line, as `rlhf generate --format jsonl` writes it'
)


@dataclass(frozen=True, slots=True)
class Answered:
    """A prompt and the answers to it."""

    prompt: Prompt
    answers: tuple[str, ...]


def is_answer_file(path: str) -> bool:
    """Whether a name on the command line is a file of answers, rather than a model."""
    return path.endswith((".jsonl", ".jsonl.gz", ".json"))


def read_answers(path: Path) -> tuple[list[Answered], DropReport]:
    """The answers of a file, each prompt once, and what was left out.

    Raises:
        DataError: no such file, a row of another shape, or nothing left.
    """
    if not path.is_file():
        raise DataError(f"There is no file {path}.", allowed=f"a file with {SHAPE}")
    report = DropReport()
    rows = (Row(place, values) for place, values in file_rows(path))
    answers = list(
        read_records(rows, _answered, report, key=lambda answered: answered.prompt.messages, seen=set())
    )
    require_some(answers, "answers", [str(path)], report)
    return answers, report


def read_prompts(path: str) -> tuple[list[Prompt], DropReport]:
    """The prompts of a file or of `demo`; of a run's folder, those it held out.

    Raises:
        DataError: a malformed row, a run without an evaluation, or nothing left.
    """
    from rlhf.config.schema import DataSource

    evaluation = Path(path) / "eval.json"
    if path != DEMO and evaluation.is_file():
        return held_out_prompts(evaluation), DropReport()
    return load_prompts([DataSource(path=path)])


def held_out_prompts(evaluation: Path) -> list[Prompt]:
    """The held-out prompts of an `align-policy` run.

    Raises:
        DataError: the file is not the eval.json of such a run.
    """
    try:
        rows = json.loads(evaluation.read_text(encoding="utf-8"))["answers"]
        return [
            Prompt(
                read_prompt(Row(f"{evaluation}: answer {number}", row), "prompt"),
                row.get("source", ""),
                row.get("check"),
            )
            for number, row in enumerate(rows, 1)
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{evaluation} holds no answers to held-out prompts ({type(error).__name__}: {error}).",
            allowed="the folder of a finished `align-policy` run",
        ) from error


def _answered(row: Row) -> Answered:
    values: Any = row.values
    if not isinstance(values, dict) or row.find("prompt") is None or row.find("answers") is None:
        present = ", ".join(values) if isinstance(values, dict) else type(values).__name__
        raise DataError(f"{row.place}: no prompt with answers, but {present}", allowed=SHAPE)
    prompt, answers, check = read_prompt(row, "prompt"), row.get("answers"), row.find("check")
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise row.wrong_item("answers", "a list of one or more texts", lambda answer: isinstance(answer, str))
    if check is not None and (not isinstance(check, dict) or check_fault(check)):
        raise row.wrong("check", "a dictionary with the check of an answer, as `rlhf generate` writes it")
    rules.require_prompt(prompt)
    source = row.find("source")
    return Answered(Prompt(prompt, "" if source is None else str(source), check), tuple(answers))
