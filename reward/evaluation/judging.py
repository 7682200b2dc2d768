"""Scores answers that are to be compared: in chunks, with a self-check, and without a silent failure.

A reward that is no number is an error, never a wrong answer. Answers the scorer refuses (too long) are counted and left
out as a whole: a prompt is judged with all its answers or not at all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypedDict

from rlhf.core.errors import DataError, DivergenceError, ModelError
from rlhf.core.records import Conversation, Message
from rlhf.data.drops import DropReport
from rlhf.runs.folder import atomic_write_text

TOLERANCE = 0.1
"""How far a score may move with its batch, see `self_check`: bfloat16 alone moves them by some hundredths."""
CHUNK = 8
"""Groups scored at a time."""
Progressed = Callable[[int], None]


class Options(TypedDict, total=False):
    """What every kind of benchmark may be told; `judge` says what it is for."""

    drops: DropReport | None
    tolerance: float
    chunk: int
    on_progress: Progressed | None


class ScoreLike(Protocol):
    """What one conversation scored: see `reward.scorer.Score`."""

    @property
    def reward(self) -> float:
        """The reward."""

    @property
    def attributes(self) -> Mapping[str, float]:
        """Every attribute by name."""


class ScorerLike(Protocol):
    """Anything that scores conversations ending with the assistant's message: see `reward.scorer.Scorer`."""

    def score(self, conversations: Sequence[Conversation]) -> Sequence[ScoreLike]:
        """One score a conversation, in their order."""


@dataclass(frozen=True, slots=True)
class Group:
    """Answers to one prompt; `names` and `label` say in a message which answer of which group it is about."""

    prompt: Conversation
    answers: tuple[str, ...]
    names: tuple[str, ...]
    label: str

    @property
    def conversations(self) -> list[Conversation]:
        """One conversation an answer."""
        return [(*self.prompt, Message("assistant", answer)) for answer in self.answers]


@dataclass(frozen=True, slots=True)
class Scored:
    """The rewards of a group's answers; `id` is the group's position, from 1."""

    id: int
    rewards: tuple[float, ...]


def judge(
    groups: Sequence[Group],
    scorer: ScorerLike,
    *,
    unit: str,
    drops: DropReport | None = None,
    tolerance: float = TOLERANCE,
    chunk: int = CHUNK,
    on_progress: Progressed | None = None,
) -> tuple[list[Scored], dict[str, Any]]:
    """The rewards of every group that the scorer takes, and the self-check of the first chunk, short to long.

    `chunk` groups are scored at a time, and `on_progress` hears how many are done. A group that the scorer
    refuses with a DataError is counted in `drops`; without `drops` it ends the evaluation.

    Args:
        unit: what a group is called in messages: "comparison".

    Raises:
        DataError: a refused group.
        DivergenceError: a reward is not a finite number.
        ModelError: scores depend on the batch.
    """
    found: list[Scored] = []
    checked: dict[str, Any] = {}
    for start in range(0, len(groups), chunk):
        batch = list(enumerate(groups[start : start + chunk], start + 1))
        found += _score_or_drop(batch, scorer, unit, drops)
        if found and not checked:
            checked = self_check(scorer, _handful([groups[one.id - 1] for one in found]), tolerance)
        if on_progress:
            on_progress(min(start + chunk, len(groups)))
    return found, checked


def write_result(path: Path, result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write a result and, before it, its rows beside it: where there is a result, there are its rows.

    Returns the rows' path: `eval_rows.jsonl` for `eval.json`.
    """
    beside = path.with_name(f"{path.stem}_rows.jsonl")
    atomic_write_text(beside, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    atomic_write_text(path, json.dumps(result, ensure_ascii=False, indent=2, allow_nan=False) + "\n")
    return beside


def self_check(
    scorer: ScorerLike, conversations: Sequence[Conversation], tolerance: float = TOLERANCE
) -> dict[str, Any]:
    """Scores a handful of conversations alone, together and in reversed order, and compares.

    difference = |in company - alone| / max(1, largest |alone|), for the reward and each attribute: absolute
    for small scores, and a share of their size for large ones, with which rounding grows.

    Returns:
        `{"largest_difference": x, "tolerance": tolerance, "count": conversations checked}`.

    Raises:
        ModelError: a score depends on its batch by more than `tolerance`.
        DivergenceError: a score is not a finite number.
    """
    alone = _values([score for conversation in conversations for score in scorer.score([conversation])])
    together = _values(scorer.score(conversations))
    backwards = _values(scorer.score(conversations[::-1])[::-1])
    largest = 0.0
    for name in alone[0]:
        scale = max(1.0, *(abs(values[name]) for values in alone))
        for number, (expected, *others) in enumerate(zip(alone, together, backwards, strict=True), 1):
            for other in others:
                difference = abs(other[name] - expected[name]) / scale
                largest = max(largest, difference)
                if difference > tolerance:
                    raise ModelError(
                        f"Scores depend on the batch: conversation {number} of the self-check has {name} "
                        f"{expected[name]:.4g} alone and {other[name]:.4g} beside {len(conversations) - 1} "
                        f"others (difference {difference:.3g}, scores up to {scale:.3g} being 1).",
                        allowed=f"a difference up to {tolerance:g}",
                        fix="check that padding is masked and pad differs from eos; if the model is merely "
                        "imprecise, load it in float32 or raise the tolerance",
                    )
    return {"largest_difference": largest, "tolerance": tolerance, "count": len(conversations)}


def _values(scores: Sequence[ScoreLike]) -> list[dict[str, float]]:
    table = [{"reward": score.reward, **score.attributes} for score in scores]
    for number, values in enumerate(table, 1):
        for name, value in values.items():
            if not math.isfinite(value):
                raise DivergenceError(f"Conversation {number} of the self-check has {name} {value}.")
    return table


def _handful(groups: Sequence[Group], count: int = 4) -> list[Conversation]:
    """The shortest and the longest answer of up to `count` groups, at even steps from short groups to long ones.

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
    batch: Sequence[tuple[int, Group]], scorer: ScorerLike, unit: str, drops: DropReport | None
) -> list[Scored]:
    try:
        return _score(batch, scorer, unit)
    except DataError as error:
        if len(batch) == 1:
            number, group = batch[0]
            place = f"{unit} {number} ({group.label})"
            if drops is None:
                raise DataError(f"{place}: {error.found}", allowed=error.allowed, fix=error.fix) from error
            drops.drop(f"refused by the reward model; allowed: {error.allowed}", place)
            return []
    return [scored for one in batch for scored in _score_or_drop([one], scorer, unit, drops)]


def _score(batch: Sequence[tuple[int, Group]], scorer: ScorerLike, unit: str) -> list[Scored]:
    conversations = [conversation for _, group in batch for conversation in group.conversations]
    try:
        rewards = iter([float(score.reward) for score in scorer.score(conversations)])
    except DivergenceError as error:
        where = f"{unit}s {batch[0][0]} to {batch[-1][0]}"
        raise DivergenceError(f"{where}: {error.found}", allowed=error.allowed, fix=error.fix) from error
    found = []
    for number, group in batch:
        scored = Scored(number, tuple(next(rewards) for _ in group.answers))
        for name, reward in zip(group.names, scored.rewards, strict=True):
            if not math.isfinite(reward):
                raise DivergenceError(
                    f"{unit} {number} ({group.label}): the {name} answer's reward is {reward}.",
                    allowed="finite rewards; a failed score is not a wrong answer",
                )
        found.append(scored)
    return found
