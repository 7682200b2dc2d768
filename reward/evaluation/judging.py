"""Score answers for a comparison: in chunks, with a self-check, and without silent failures.

A reward that is no number is an error, never a wrong answer. Answers the scorer refuses (too long) are
counted and left out as a whole: a prompt is judged with all its answers or not at all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypedDict, runtime_checkable

from reward.evaluation.self_check import TOLERANCE, ScorerLike, self_check
from rlhf.core.errors import DataError, DivergenceError, RefusalError
from rlhf.core.records import Conversation, Message
from rlhf.data.drops import DropReport
from rlhf.runs.files import atomic_write_text

CHUNK = 8
"""Groups scored at a time."""
Progressed = Callable[[int], None]


class Options(TypedDict, total=False):
    """Options of every kind of benchmark, see `judge`."""

    drops: DropReport | None
    tolerance: float
    strict: bool
    chunk: int
    on_progress: Progressed | None


@dataclass(frozen=True, slots=True)
class Group:
    """Answers to one prompt; `names` and `label` identify an answer and its group in error messages.

    `fields` are those of the answers' messages, see `rlhf.core.records.Message`; empty where no answer has
    any.
    """

    prompt: Conversation
    answers: tuple[str, ...]
    names: tuple[str, ...]
    label: str
    fields: tuple[str, ...] = ()

    @property
    def conversations(self) -> list[Conversation]:
        """One conversation per answer."""
        fields = self.fields or ("",) * len(self.answers)
        return [
            (*self.prompt, Message("assistant", answer, extra))
            for answer, extra in zip(self.answers, fields, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Scored:
    """The rewards of a group's answers; `id` is the group's position, from 1."""

    id: int
    rewards: tuple[float, ...]


@runtime_checkable
class GroupScorer(Protocol):
    """Scores the answers of a group together, as a judge that compares them does."""

    def score_groups(self, groups: Sequence[Group]) -> Sequence[tuple[float, ...] | str]:
        """The scores of each group's answers, or why there are none."""


Scorers = ScorerLike | GroupScorer


def judge(
    groups: Sequence[Group],
    scorer: Scorers,
    *,
    unit: str,
    drops: DropReport | None = None,
    tolerance: float = TOLERANCE,
    strict: bool = True,
    chunk: int = CHUNK,
    on_progress: Progressed | None = None,
) -> tuple[list[Scored], dict[str, Any]]:
    """The rewards of every group that the scorer takes, and the self-check of the first chunk, short to long.

    `chunk` groups are scored at a time, and `on_progress` hears how many are done. A group that the scorer
    refuses with a DataError is counted in `drops`; without `drops` it ends the evaluation. A judge's scores
    are not compared between batches: its self-check is empty.

    Args:
        unit: what a group is called in messages: "comparison".
        tolerance, strict: see `reward.evaluation.self_check.self_check`.

    Raises:
        DataError: a refused group, or no group is left.
        DivergenceError: a reward is not a finite number.
        ModelError: scores depend on the batch, unless not `strict`.
    """
    scored: list[Scored] = []
    checked: dict[str, Any] = {}
    for start in range(0, len(groups), chunk):
        batch = list(enumerate(groups[start : start + chunk], start + 1))
        scored += _score_or_drop(batch, scorer, unit, drops)
        if scored and not checked and not isinstance(scorer, GroupScorer):
            handful = _handful([groups[entry.id - 1] for entry in scored])
            checked = self_check(scorer, handful, tolerance, strict=strict)
        if on_progress:
            on_progress(min(start + chunk, len(groups)))
    if groups and not scored and drops is not None:
        raise DataError(
            f"None of the {len(groups)} {unit}s could be scored.\n" + "\n".join(drops.lines()),
            allowed=f"at least one {unit} that is scored",
            fix="see the reasons above: a larger context, or of a judge a larger max_tokens or another form",
        )
    return scored, checked


def write_result(path: Path, result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write a result and, before it, its rows beside it: where there is a result, there are its rows.

    Returns the rows' path: `eval_rows.jsonl` for `eval.json`.
    """
    beside = path.with_name(f"{path.stem}_rows.jsonl")
    atomic_write_text(beside, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    atomic_write_text(path, json.dumps(result, ensure_ascii=False, indent=2, allow_nan=False) + "\n")
    return beside


def _handful(groups: Sequence[Group], count: int = 4) -> list[Conversation]:
    """The shortest and longest answer of up to `count` groups, at even steps from short to long groups.

    Lengths far apart make much padding, and a group's shared prompt may be computed once: where a batch would
    show in the scores.
    """
    ranked = sorted(groups, key=lambda group: sum(map(len, group.answers)))
    count = min(count, len(ranked))
    picked = [ranked[i * (len(ranked) - 1) // max(1, count - 1)] for i in range(count)]
    ends = []
    for group in picked:
        by_length = sorted(group.conversations, key=lambda conversation: len(conversation[-1].content))
        ends += [by_length[0], by_length[-1]]
    return ends


def _score_or_drop(
    batch: Sequence[tuple[int, Group]], scorer: Scorers, unit: str, drops: DropReport | None
) -> list[Scored]:
    if isinstance(scorer, GroupScorer):
        return _score_groups(batch, scorer, unit, drops)
    try:
        return _score(batch, scorer, unit)
    except DataError as error:
        if len(batch) == 1:
            number, group = batch[0]
            place = f"{unit} {number} ({group.label})"
            if drops is None:
                raise DataError(f"{place}: {error.found}", allowed=error.allowed, fix=error.fix) from error
            cause = error.reason if isinstance(error, RefusalError) else f"allowed: {error.allowed}"
            drops.drop(f"refused by the reward model; {cause}", place)
            return []
    return [scored for member in batch for scored in _score_or_drop([member], scorer, unit, drops)]


def _score_groups(
    batch: Sequence[tuple[int, Group]], scorer: GroupScorer, unit: str, drops: DropReport | None
) -> list[Scored]:
    scored = []
    for (number, group), scores in zip(
        batch, scorer.score_groups([group for _, group in batch]), strict=True
    ):
        if not isinstance(scores, str):
            scored.append(Scored(number, scores))
        elif drops is None:
            raise DataError(f"{unit} {number} ({group.label}): {scores}")
        else:
            drops.drop(scores, f"{unit} {number} ({group.label})")
    return scored


def _score(batch: Sequence[tuple[int, Group]], scorer: ScorerLike, unit: str) -> list[Scored]:
    conversations = [conversation for _, group in batch for conversation in group.conversations]
    try:
        rewards = iter([float(score.reward) for score in scorer.score(conversations)])
    except DivergenceError as error:
        where = f"{unit}s {batch[0][0]} to {batch[-1][0]}"
        raise DivergenceError(f"{where}: {error.found}", allowed=error.allowed, fix=error.fix) from error
    results = []
    for number, group in batch:
        scored = Scored(number, tuple(next(rewards) for _ in group.answers))
        for name, reward in zip(group.names, scored.rewards, strict=True):
            if not math.isfinite(reward):
                raise DivergenceError(
                    f"{unit} {number} ({group.label}): the {name} answer's reward is {reward}.",
                    allowed="finite rewards; a failed score is not a wrong answer",
                )
        results.append(scored)
    return results
