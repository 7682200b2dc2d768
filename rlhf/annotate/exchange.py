"""Tasks and annotations of Label Studio (pairwise) and Argilla, read and written.

Label Studio: the JSON export of a project with the `Pairwise` template; the preferred side is `left` or
`right`.
Argilla: the JSON of `Dataset.records.to_json`; a question `preference` with values -3..3, and a question
`reason`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rlhf.annotate.records import STRENGTHS, Annotation, Submission, by_task
from rlhf.annotate.tasks import Task, as_messages, check_task
from rlhf.core.errors import DataError
from rlhf.data.annotations import NEITHER_VALID

SIDES = (("response_1", "response_2"), ("answer1", "answer2"), ("text1", "text2"), ("chosen", "rejected"))
"""Names of the two responses in other tools' templates."""
LEFT, RIGHT = -2, 2
"""Strength of a choice that has no degree: better."""


def to_label_studio(tasks: Mapping[int, Task], annotations: Sequence[Annotation]) -> list[dict[str, Any]]:
    """Tasks with their annotations, for Label Studio's import."""
    grouped = by_task(annotations)
    return [
        {
            "id": number,
            "data": {"prompt": task.messages, "response_1": task.response_1, "response_2": task.response_2},
            "annotations": [
                {"completed_by": a.annotator, "result": _label_studio_result(a.submission)}
                for a in grouped.get(number, [])
            ],
        }
        for number, task in tasks.items()
    ]


def from_label_studio(content: Any) -> list[tuple[Task, list[tuple[str, Submission]]]]:
    """Tasks, each with the annotators' submissions; a choice without a degree has strength 2.

    Annotations that were skipped there (`was_cancelled`), or without a choice, are left out.

    Raises:
        DataError: not a pairwise project's JSON.
    """
    tasks = []
    for number, item in enumerate(_list(content, "Label Studio"), 1):
        place = f"task {number}"
        task = _task(item.get("data"), place)
        with _export_of("Label Studio", place):
            submissions = [
                (_annotator(annotation.get("completed_by")), submission)
                for annotation in item.get("annotations") or []
                if not annotation.get("was_cancelled")
                if (submission := _read_label_studio_result(annotation.get("result") or [], place))
            ]
        tasks.append((task, submissions))
    return tasks


def to_argilla(tasks: Mapping[int, Task], annotations: Sequence[Annotation]) -> list[dict[str, Any]]:
    """Records with their responses, for Argilla's `Dataset.records.from_json`."""
    grouped = by_task(annotations)
    records = []
    for number, task in tasks.items():
        group = grouped.get(number, [])
        preferences = [{"value": a.submission.strength, "user_id": a.annotator} for a in group]
        reasons = [{"value": a.submission.reason, "user_id": a.annotator} for a in group]
        records.append(
            {
                "id": str(number),
                "fields": {
                    "prompt": task.messages,
                    "response_1": task.response_1,
                    "response_2": task.response_2,
                },
                "metadata": {},
                "suggestions": {},
                "responses": {"preference": preferences, "reason": reasons} if group else {},
            }
        )
    return records


def from_argilla(content: Any) -> list[tuple[Task, list[tuple[str, Submission]]]]:
    """Tasks, each with the annotators' submissions.

    Raises:
        DataError: not the JSON of Argilla records with two responses.
    """
    tasks = []
    for number, record in enumerate(_list(content, "Argilla"), 1):
        place = f"record {number}"
        task = _task(record.get("fields"), place)
        with _export_of("Argilla", place):
            responses = record.get("responses") or {}
            reasons = {
                str(r.get("user_id")): str(r.get("value") or "") for r in responses.get("reason") or []
            }
            submissions = [
                (user, Submission(strength=_strength(r.get("value"), place), reason=reasons.get(user, "")))
                for r in responses.get("preference") or []
                for user in [str(r.get("user_id"))]
            ]
        tasks.append((task, submissions))
    return tasks


def _label_studio_result(submission: Submission) -> list[dict[str, Any]]:
    common = {"from_name": "preference", "to_name": "response_1,response_2"}
    strength = submission.strength
    result = [
        {
            "from_name": "reason",
            "to_name": "prompt",
            "type": "textarea",
            "value": {"text": [submission.reason]},
        }
    ]
    if strength is not None and strength != NEITHER_VALID:
        side = "left" if strength < 0 else "right"
        result.insert(0, {**common, "type": "pairwise", "value": {"selected": side}})
    degree = {"choices": [str(strength)]}
    return [*result, {"from_name": "strength", "to_name": "prompt", "type": "choices", "value": degree}]


def _read_label_studio_result(result: Sequence[Mapping[str, Any]], place: str) -> Submission | None:
    strength, reason = None, ""
    for part in result:
        value = part.get("value", {})
        if part.get("type") == "pairwise" and strength is None:
            strength = {"left": LEFT, "right": RIGHT}.get(str(value.get("selected")))
        if part.get("from_name") == "strength" and value.get("choices"):
            strength = _strength(value["choices"][0], place)
        if part.get("type") == "textarea":
            reason = "\n".join(map(str, value.get("text", [])))
    return None if strength is None else Submission(strength=strength, reason=reason)


def _strength(value: Any, place: str) -> int:
    by_text = {str(strength): strength for strength in (*STRENGTHS, NEITHER_VALID)}
    if (strength := by_text.get(str(value).strip())) is None:
        raise DataError(
            f"{place}: the preference {value!r} is not a valid strength.",
            allowed=f"{', '.join(by_text)} ({NEITHER_VALID}: neither is valid)",
        )
    return strength


def _annotator(value: Any) -> str:
    """The name of who annotated: a number, a name, or Label Studio's object of a person."""
    if isinstance(value, dict):
        value = value.get("email") or value.get("username") or value.get("id")
    return "imported" if value is None else str(value)


@contextmanager
def _export_of(tool: str, place: str) -> Iterator[None]:
    """Errors of reading values of other types or rules than the tool exports, as an error with the place."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{place}: its annotations are not as {tool} exports them: {str(error).splitlines()[0]}",
            allowed=f"the JSON export of {tool}, unchanged",
        ) from error


def _list(content: Any, tool: str) -> list[Mapping[str, Any]]:
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise DataError(f"This is no JSON export of {tool}.", allowed="a JSON list of objects")
    return content


def _task(fields: Any, place: str) -> Task:
    names = next((pair for pair in SIDES if isinstance(fields, dict) and pair[0] in fields), None)
    if names is None or "prompt" not in fields or names[1] not in fields:
        found = ", ".join(fields) if isinstance(fields, dict) else type(fields).__name__
        raise DataError(
            f"{place}: found {found}.",
            allowed="a prompt and two responses, named " + " or ".join("/".join(pair) for pair in SIDES),
        )
    prompt = fields["prompt"]
    texts = [fields[name] for name in names]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not all(_is_message(part) for part in prompt):
        raise DataError(
            f"{place}: the prompt is not text.", allowed="a string, or messages with role and content"
        )
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{place}: {' or '.join(names)} is not text.", allowed="two strings")
    task = Task(as_messages(prompt), *texts)
    check_task(task, place)
    return task


def _is_message(part: Any) -> bool:
    return isinstance(part, dict) and all(isinstance(part.get(name), str) for name in ("role", "content"))
