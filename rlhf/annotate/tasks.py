"""Annotation tasks: a prompt and two responses, read from any file that `rlhf.data` reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from rlhf.config.schema import DataSource
from rlhf.core.errors import DataError
from rlhf.core.records import TOOLS, Conversation, Message, is_unicode
from rlhf.data.drops import DropReport
from rlhf.data.readers.messages import read_responses
from rlhf.data.rules import DUPLICATE, IDENTICAL_RESPONSES, UnusableRowError, with_fields
from rlhf.data.sources.rows import Row, is_number, read_rows

COLUMNS = (("response_1", "response_2"), ("chosen", "rejected"), ("response_a", "response_b"))
"""Names of the two response columns that are recognised, beside a list `responses` of two."""

CONTENT = frozenset({"tool_calls", "reasoning_content", TOOLS})
"""Fields of a message that the page does not show."""


@dataclass(frozen=True, slots=True)
class Task:
    """Two responses to one prompt."""

    prompt: Conversation
    response_1: str
    response_2: str

    @property
    def key(self) -> str:
        """A hash of the content: the same task in two files is one task."""
        content = json.dumps([self.messages, self.response_1, self.response_2])
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def messages(self) -> list[dict[str, str]]:
        """The prompt as chat messages."""
        return [{"role": message.role, "content": message.content} for message in self.prompt]


def read_tasks(path: str, report: DropReport | None = None) -> list[Task]:
    """All tasks of a file or folder, without repetitions.

    Of a row of `rlhf compare` the two answers with the closest rewards become a task; tasks are in the order
    of that distance, so that people see first what the reward model cannot decide. A row whose answers are
    all equal is dropped.

    Args:
        report: counts the rows, and those that repeat an earlier one or have equal answers.

    Raises:
        DataError: a row has no prompt, not exactly two different responses, or a message with more than text,
            which the page does not show; with its place.
    """
    tasks: dict[str, tuple[float, Task]] = {}
    report = DropReport() if report is None else report
    for row in read_rows(DataSource(path=path), seed=0):
        report.read += 1
        try:
            distance, task = (0.0, _task(row)) if row.find("a") is None else _compared(row)
        except UnusableRowError as error:
            raise DataError(f"{row.place}: {error}", allowed="text in prompt and responses") from error
        if task is None:
            report.drop(IDENTICAL_RESPONSES, row.place)
            continue
        check_task(task, row.place)
        if task.key in tasks:
            report.drop(DUPLICATE, row.place)
        tasks.setdefault(task.key, (distance, task))
    if not tasks:
        raise DataError(f"{path} holds no tasks.", allowed="rows of a prompt and two responses")
    return [task for _, task in sorted(tasks.values(), key=lambda entry: entry[0])]


def check_task(task: Task, place: str) -> None:
    """Refuse a task that nobody can annotate.

    Raises:
        DataError: the prompt or a response is empty, the responses are the same, or a text cannot be stored.
    """
    responses = (task.response_1, task.response_2)
    if not task.prompt or any(not text.strip() for text in responses):
        raise DataError(f"{place}: the prompt or a response is empty.", allowed="a prompt and two responses")
    if task.response_1 == task.response_2:
        raise DataError(
            f"{place}: both responses are the same.",
            allowed="two different responses",
            fix="leave out such rows: nobody can prefer one of them",
        )
    if not is_unicode((*task.prompt, *(Message("assistant", text) for text in responses))):
        raise DataError(
            f"{place}: a text holds half of a surrogate pair.",
            allowed="text that UTF-8 can write",
            fix="correct the row: a character was cut in two",
        )


def as_messages(prompt: Iterable[dict[str, str]]) -> Conversation:
    """Chat messages as records."""
    return tuple(Message(m["role"], m["content"]) for m in prompt)  # type: ignore[arg-type]


def _compared(row: Row) -> tuple[float, Task | None]:
    """The task of a row of `rlhf compare` and the distance of its rewards, 0 where one is missing."""
    prompt, _ = read_responses(row, "prompt")
    sides = []
    for name in ("a", "b"):
        answers = row.get(name)
        if not isinstance(answers, list) or not all(
            isinstance(answer, dict) and isinstance(answer.get("answer"), str) for answer in answers
        ):
            raise row.wrong(name, "a list of answers with their rewards, as `rlhf compare` writes it")
        sides.append([(answer["answer"], answer.get("reward")) for answer in answers])
    pairs = [
        (abs(x - y) if is_number(x) and is_number(y) else 0.0, Task(prompt, first, second))
        for first, x in sides[0]
        for second, y in sides[1]
        if first != second and first.strip() and second.strip()
    ]
    return min(pairs, key=lambda pair: pair[0], default=(0.0, None))


def _task(row: Row) -> Task:
    if row.find("responses") is not None:
        responses = row.find("responses")
        if (
            not isinstance(responses, list)
            or len(responses) != 2
            or not all(isinstance(r, str) for r in responses)
        ):
            count = len(responses) if isinstance(responses, list) else "not a list of"
            raise DataError(
                f"{row.place}: `responses` has {count} responses.",
                allowed="a list of two strings",
                fix="write two responses a row, or give compare_rows.jsonl of `rlhf compare`",
            )
        prompt, _ = read_responses(row, "prompt")
        texts = list(responses)
    else:
        names = next((pair for pair in COLUMNS if row.find(pair[0]) is not None), None)
        if names is None:
            raise DataError(
                f"{row.place}: no responses; the row has {', '.join(row.values) or 'no columns'}.",
                allowed="a prompt, and response_1 and response_2, chosen and rejected, or responses of two",
                fix="rename the columns of the file",
            )
        prompt, texts = read_responses(row, "prompt", *names)
    if fields := {name for message in prompt for name in message.extra()} & CONTENT:
        raise UnusableRowError(with_fields(fields))
    return Task(prompt, texts[0], texts[1])
