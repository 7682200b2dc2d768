"""Annotations as rows of HelpSteer2 and HelpSteer2-Preference, in NVIDIA's folder layout.

    FOLDER/train.jsonl.gz                            one rating of each attribute, of responses on which
    annotators agree FOLDER/disagreements/disagreements.jsonl.gz      every annotator's ratings
    FOLDER/preference/preference.jsonl.gz            preferences with strength, and
    `all_preferences_unprocessed`

`rlhf train-reward` reads the folder as `{path: FOLDER, format: helpsteer2}` and `format:
helpsteer2-preference`.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.annotate.agreement import agreed_ratings, agreed_strength
from rlhf.annotate.records import Annotation, Submission, by_task, is_complete
from rlhf.annotate.store import Store
from rlhf.annotate.tasks import Task
from rlhf.core.records import HELPSTEER_ATTRIBUTES, Conversation
from rlhf.data.annotations import (
    NEITHER_VALID,
    PAPER_SPREAD,
    most_similar_annotators,
)
from rlhf.data.readers.helpsteer import TURN
from rlhf.runs.files import atomic_folder

PARTIAL = "ratings of a response without some of the attributes, beside `neither is valid`"
SPLIT = "train"
"""The split of all preferences: `rlhf train-reward` holds prompts out itself, of ratings and pairs alike."""


@dataclass(frozen=True)
class Export:
    """Rows by file, and what was left out by reason."""

    ratings: list[dict[str, Any]] = field(default_factory=list)
    disagreements: list[dict[str, Any]] = field(default_factory=list)
    preferences: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)


def joined_turns(prompt: Conversation) -> str | None:
    """A prompt as HelpSteer2's one string; None where that cannot hold it (a system turn, its own
    separators)."""
    roles = [message.role for message in prompt]
    expected = ["user" if place % 2 == 0 else "assistant" for place in range(len(prompt))]
    if roles != expected or roles[-1:] != ["user"] or any(TURN.search(message.content) for message in prompt):
        return None
    names = {"user": "User", "assistant": "Assistant"}
    later = "".join(f"\n<extra_id_1>{names[m.role]}\n{m.content}" for m in prompt[1:])
    return prompt[0].content + later


def export_rows(
    tasks: Mapping[int, Task],
    annotations: Sequence[Annotation],
    adjudications: Mapping[int, Submission],
    *,
    max_spread: int = PAPER_SPREAD,
    fewest: int = 3,
) -> Export:
    """All annotated tasks as rows.

    The strength of a task is the adjudicator's, else the rounded mean of the three most similar annotations,
    else 0, which `train-reward` drops and counts.

    Args:
        fewest: annotators that a task needs; for fewer than three see `agreed_strength`.
    """
    result = Export()
    for number, group in by_task(annotations).items():
        task = tasks[number]
        prompt = joined_turns(task.prompt)
        if prompt is None:
            reason = "a prompt that HelpSteer2's format cannot hold (system turn or separator)"
            result.left_out[reason] = result.left_out.get(reason, 0) + len(group)
            continue
        decision = adjudications.get(number)
        result.preferences.append(_preference(prompt, task, group, decision, max_spread, fewest))
        for which, response in (("ratings_1", task.response_1), ("ratings_2", task.response_2)):
            given = [ratings for a in group if (ratings := getattr(a.submission, which))]
            rated = [ratings for ratings in given if is_complete(ratings)]
            if partial := len(given) - len(rated):
                result.left_out[PARTIAL] = result.left_out.get(PARTIAL, 0) + partial
            people = {name: [ratings[name] for ratings in rated] for name in HELPSTEER_ATTRIBUTES}
            if not rated:
                continue
            result.disagreements.append({"prompt": prompt, "response": response, **people})
            decided = getattr(decision, which, {})
            rating = decided if is_complete(decided) else agreed_ratings(people, max_spread, fewest)
            if not isinstance(rating, str):
                whole = {name: int(rating[name]) for name in HELPSTEER_ATTRIBUTES}
                result.ratings.append({"prompt": prompt, "response": response, **whole})
    return result


def write_export(store: Store, folder: Path, *, max_spread: int = PAPER_SPREAD, fewest: int = 3) -> Export:
    """Write all three files, whole or not at all, in place of a folder that is there."""
    rows = export_rows(
        store.tasks(), store.annotations(), store.adjudications(), max_spread=max_spread, fewest=fewest
    )
    with atomic_folder(folder) as unfinished:
        _write(unfinished / "train.jsonl.gz", rows.ratings)
        _write(unfinished / "disagreements" / "disagreements.jsonl.gz", rows.disagreements)
        _write(unfinished / "preference" / "preference.jsonl.gz", rows.preferences)
    return rows


def _preference(
    prompt: str,
    task: Task,
    group: Sequence[Annotation],
    decision: Submission | None,
    max_spread: int,
    fewest: int,
) -> dict[str, Any]:
    marks = [(a.submission.strength or 0, a.submission.reason) for a in group]
    strengths = [strength for strength, _ in marks]
    valid = sum(strength != NEITHER_VALID for strength in strengths)
    three = [marks[place] for place in most_similar_annotators(strengths)] if valid >= 3 else []
    if decision is None:
        strength = agreed_strength(strengths, max_spread, fewest).strength or 0
        used = three or marks
        reason = next((text for mark, text in used if mark == strength), three[0][1] if three else "")
    else:
        strength, reason = decision.strength or 0, decision.reason
        strength = 0 if strength == NEITHER_VALID else strength
    return {
        "split": SPLIT,
        "prompt": prompt,
        "response_1": task.response_1,
        "response_2": task.response_2,
        "preference_strength": strength,
        "preference_statement": _statement(strength),
        "preference_elaboration": reason,
        "three_most_similar_preferences": [
            {"statement": _statement(mark), "elaboration": text, "strength": mark} for mark, text in three
        ],
        "all_preferences_unprocessed": [{"strength": mark, "justification": text} for mark, text in marks],
    }


def _statement(strength: int) -> str:
    """NVIDIA's sentence for a strength; empty where none is preferred."""
    if strength == NEITHER_VALID or not strength:
        return ""
    better, worse = (2, 1) if strength > 0 else (1, 2)
    degree = {1: "slightly better", 2: "better", 3: "much better"}[abs(strength)]
    return f"@Response {better} is {degree} than @Response {worse}."


def _write(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(file, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
