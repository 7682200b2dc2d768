"""Accuracy of a reward model on pairs of a better and a worse answer: RewardBench, and any file of its shape.

A pair is right when the better answer's reward is *strictly* greater; a tie is wrong, as in RewardBench.
`reward.aggregate` says how pairs become section scores and one overall score. The length baseline ("the
answer with more characters is better", ties wrong) is aggregated by the same rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from reward.aggregate import aggregate, aggregation_rule, rewardbench_scores, wilson_interval
from rlhf.core.errors import DataError, DivergenceError, ModelError
from rlhf.core.records import Comparison, Conversation, Message
from rlhf.data.drops import DropReport

TOLERANCE = 0.1
"""How far a score may move with its batch, see `self_check`: bfloat16 alone moves them by some hundredths."""

__all__ = ["TOLERANCE", "ScoreLike", "ScorerLike", "evaluate", "rewardbench_scores", "self_check"]


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
class _Judged:
    """One scored pair; `id` is its position among the comparisons, from 1."""

    id: int
    subset: str
    reward_chosen: float
    reward_rejected: float
    correct: bool
    length_chosen: int
    length_rejected: int


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


def evaluate(
    comparisons: Sequence[Comparison],
    scorer: ScorerLike,
    *,
    drops: DropReport | None = None,
    tolerance: float = TOLERANCE,
    chunk: int = 8,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Judges every pair and aggregates by `reward.aggregate`'s rule for these subsets and sections.

    `chunk` pairs are scored at a time, and `on_progress` hears how many are done. The first chunk also gives
    the self-check its pairs, short to long. A pair that the scorer refuses with a DataError (too long) is left
    out and counted in `drops`; without `drops` it ends the evaluation.

    Returns:
        The result and its rows. Result: `{"subsets": {name: {"accuracy", "count", "ci95", "ties",
        "length_baseline"}}, "sections": {name: accuracy}, "overall", "length_baseline", "count",
        "intervals": {"sections": {name: [low, high]}, "overall": [low, high]}, "length_correlation",
        "aggregation": the rule's name, "self_check": {...}}`. Intervals: 95 % Wilson, over Kish's effective
        count where pairs weigh differently. A row: `{"id", "subset", "reward_chosen", "reward_rejected",
        "correct", "length_chosen", "length_rejected"}`, lengths in characters.

    Raises:
        DataError: no comparisons, or only some of them name a section; a refused pair, or a whole subset of
            RewardBench refused.
        DivergenceError: a reward is not a finite number; it is never counted as a wrong answer.
        ModelError: scores depend on the batch.
    """
    rule, *_ = aggregation_rule(comparisons)
    rows: list[_Judged] = []
    checked: dict[str, Any] = {}
    for start in range(0, len(comparisons), chunk):
        batch = list(enumerate(comparisons[start : start + chunk], start + 1))
        rows += _judge_or_drop(batch, scorer, drops)
        if rows and not checked:
            checked = self_check(scorer, _handful([comparisons[row.id - 1] for row in rows]), tolerance)
        if on_progress:
            on_progress(min(start + chunk, len(comparisons)))
    rule_left, sections, weights = aggregation_rule([comparisons[row.id - 1] for row in rows])
    if rule_left != rule:
        lost = {item.subset for item in comparisons} - {row.subset for row in rows}
        raise DataError(
            f"The reward model refused every pair of {', '.join(sorted(lost))}.",
            allowed=f"at least one pair of each subset, as the rule {rule!r} needs them",
            fix="use a reward model with a larger max_length",
        )
    correct = [row.correct for row in rows]
    longer = [row.length_chosen > row.length_rejected for row in rows]
    scores, overall, intervals = aggregate(correct, sections, weights)
    result = {
        "subsets": _subsets(rows),
        "sections": scores if rule != "pairs" else {},
        "overall": overall,
        "length_baseline": aggregate(longer, sections, weights)[1],
        "count": len(rows),
        "intervals": intervals if rule != "pairs" else {**intervals, "sections": {}},
        "length_correlation": _length_correlation(rows),
        "aggregation": rule,
        "self_check": checked,
    }
    return result, [asdict(row) for row in rows]


def _handful(comparisons: Sequence[Comparison], count: int = 4) -> list[Conversation]:
    """Both conversations of up to `count` pairs, at even steps from the shortest to the longest.

    Lengths far apart make much padding, and a pair's shared prompt may be computed once: where a batch would
    show in the scores.
    """
    ranked = sorted(comparisons, key=lambda item: len(item.chosen) + len(item.rejected))
    count = min(count, len(ranked))
    picked = [ranked[i * (len(ranked) - 1) // max(1, count - 1)] for i in range(count)]
    return [conversation for item in picked for conversation in _conversations(item)]


def _conversations(item: Comparison) -> tuple[Conversation, Conversation]:
    return (
        (*item.prompt, Message("assistant", item.chosen)),
        (*item.prompt, Message("assistant", item.rejected)),
    )


def _judge_or_drop(
    batch: Sequence[tuple[int, Comparison]], scorer: ScorerLike, drops: DropReport | None
) -> list[_Judged]:
    try:
        return _judge(batch, scorer)
    except DataError as error:
        if len(batch) == 1:
            number, item = batch[0]
            place = f"comparison {number} (subset {item.subset!r})"
            if drops is None:
                raise DataError(f"{place}: {error.found}", allowed=error.allowed, fix=error.fix) from error
            drops.drop(f"refused by the reward model; allowed: {error.allowed}", place)
            return []
    return [row for one in batch for row in _judge_or_drop([one], scorer, drops)]


def _judge(batch: Sequence[tuple[int, Comparison]], scorer: ScorerLike) -> list[_Judged]:
    conversations = [conversation for _, item in batch for conversation in _conversations(item)]
    try:
        scores = [float(score.reward) for score in scorer.score(conversations)]
    except DivergenceError as error:
        where = f"comparisons {batch[0][0]} to {batch[-1][0]}"
        raise DivergenceError(f"{where}: {error.found}", allowed=error.allowed, fix=error.fix) from error
    rows = []
    for (number, item), chosen, rejected in zip(batch, scores[::2], scores[1::2], strict=True):
        for which, reward in (("chosen", chosen), ("rejected", rejected)):
            if not math.isfinite(reward):
                raise DivergenceError(
                    f"comparison {number} (subset {item.subset!r}): the {which} answer's reward is {reward}.",
                    allowed="finite rewards; a failed score is not a wrong answer",
                )
        right = chosen > rejected
        lengths = len(item.chosen), len(item.rejected)
        rows.append(_Judged(number, item.subset, chosen, rejected, right, *lengths))
    return rows


def _subsets(rows: Sequence[_Judged]) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[_Judged]] = {}
    for row in rows:
        groups.setdefault(row.subset, []).append(row)
    table = {}
    for subset, group in groups.items():
        count = len(group)
        accuracy = sum(row.correct for row in group) / count
        table[subset] = {
            "accuracy": accuracy,
            "count": count,
            "ci95": wilson_interval(accuracy, count),
            "ties": sum(row.reward_chosen == row.reward_rejected for row in group),
            "length_baseline": sum(row.length_chosen > row.length_rejected for row in group) / count,
        }
    return table


def _length_correlation(rows: Sequence[_Judged]) -> float | None:
    """Correlation of reward and length within pairs: -1..1, or None where either never differs.

    sum(dr * dl) / sqrt(sum(dr^2) * sum(dl^2)) over the differences of a pair's two answers: Pearson's r of
    rewards and lengths after taking off each pair's mean, as rewards compare only within a prompt. Which
    answer is called better does not enter.
    """
    rewards = [row.reward_chosen - row.reward_rejected for row in rows]
    lengths = [float(row.length_chosen - row.length_rejected) for row in rows]
    norm = math.hypot(*rewards) * math.hypot(*lengths)
    if norm == 0:
        return None
    product = math.fsum(dr * dl for dr, dl in zip(rewards, lengths, strict=True))
    return max(-1.0, min(1.0, product / norm))
