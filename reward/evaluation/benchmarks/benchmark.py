"""Accuracy of a reward model on pairs of a better and a worse answer: RewardBench, and any file of its shape.

A pair is right when the better answer's reward is *strictly* greater; a tie is wrong, as in RewardBench.
`aggregate.py` says how pairs become section scores and one overall score. The two baselines, the answer with
more and the one with fewer characters (ties wrong), are aggregated by the same rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Unpack

from reward.evaluation.benchmarks.aggregate import aggregate, aggregation_rule, coverage
from reward.evaluation.benchmarks.breakdown import (
    by_group,
    by_length,
    by_strength,
    score_distribution,
    shares,
)
from reward.evaluation.benchmarks.calibration import calibration
from reward.evaluation.judging import Group, Options, Scored, Scorers, judge
from rlhf.core.errors import DataError
from rlhf.core.records import Comparison, Conversation


@dataclass(frozen=True, slots=True)
class _Judged:
    """One scored pair: `id` is its position among the comparisons, `prompt` the number of its prompt."""

    id: int
    prompt: int
    subset: str
    reward_chosen: float
    reward_rejected: float
    correct: bool
    length_chosen: int
    length_rejected: int
    strength: int | None


def evaluate(
    comparisons: Sequence[Comparison],
    scorer: Scorers,
    **options: Unpack[Options],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Score every pair and aggregate by the rule of `aggregate.py` for these subsets.

    The options are those of `reward.evaluation.judging.judge`.

    Returns:
        The result and its rows. Result: `{"subsets": {name: {"accuracy", "count", "ci95", "ties",
        "length_baseline", "shortest_baseline"}}, "sections": {name: accuracy}, "overall", "length_baseline",
        "shortest_baseline", "count", "intervals": {"sections": {name: [low, high]}, "overall": [low, high]},
        "length_correlation", "aggregation": the rule's name, "self_check": {...}, "notes": [sentences]}`, and
        over all pairs alike `"calibration"`, `"strengths"`, `"lengths"` and `"scores"` as
        `calibration.py` and `breakdown.py` compute them. Intervals: 95 % Wilson, over the effective count
        where pairs weigh differently or share prompts. A row: `{"id", "prompt", "subset", "reward_chosen",
        "reward_rejected", "correct", "length_chosen", "length_rejected"}`, lengths in characters, and
        `"strength"` where it is known.

    Where the comparisons have groups, the result has `"groups": {name: {value: {"accuracy", "count",
    "ci95"}}}`.

    Raises:
        DataError: no comparisons, or only some of them name a section; a refused pair, or a whole subset of
            RewardBench refused.
        DivergenceError: a reward is not a finite number; it is never counted as a wrong answer.
        ModelError: scores depend on the batch.
    """
    rule, *_ = aggregation_rule(comparisons)
    scored, checked = judge(
        [_group(item) for item in comparisons],
        scorer,
        unit="comparison",
        **options,
    )
    kept = [comparisons[entry.id - 1] for entry in scored]
    sections, weights = _same_rule(rule, comparisons, kept)
    numbers: dict[Conversation, int] = {}
    rows = [
        _judged(item, entry, numbers.setdefault(item.prompt, len(numbers) + 1))
        for item, entry in zip(kept, scored, strict=True)
    ]
    correct = [row.correct for row in rows]
    longer = [row.length_chosen > row.length_rejected for row in rows]
    shorter = [row.length_chosen < row.length_rejected for row in rows]
    prompts = [row.prompt for row in rows]
    scores, overall, intervals = aggregate(correct, sections, weights, prompts)
    result = {
        "subsets": _subsets(rows),
        "sections": scores if rule != "pairs" else {},
        "overall": overall,
        "length_baseline": aggregate(longer, sections, weights, prompts)[1],
        "shortest_baseline": aggregate(shorter, sections, weights, prompts)[1],
        "count": len(rows),
        "intervals": intervals if rule != "pairs" else {**intervals, "sections": {}},
        "length_correlation": _length_correlation(rows),
        "aggregation": rule,
        "self_check": checked,
        "notes": coverage(kept),
        **_details(rows),
    }
    if groups := by_group(zip(correct, prompts, strict=True), [item.groups for item in kept]):
        result["groups"] = groups
    return result, [_row(row) for row in rows]


def _same_rule(
    rule: str, comparisons: Sequence[Comparison], kept: Sequence[Comparison]
) -> tuple[list[str], list[float]]:
    """Section and weight of the pairs that are left, by the rule of all of them."""
    rule_left, sections, weights = aggregation_rule(kept)
    if rule_left != rule:
        lost = {item.subset for item in comparisons} - {item.subset for item in kept}
        raise DataError(
            f"The reward model refused every pair of {', '.join(sorted(lost))}.",
            allowed=f"at least one pair of each subset, as the rule {rule!r} needs them",
            fix="use a reward model with a larger max_length",
        )
    return sections, weights


def _group(item: Comparison) -> Group:
    return Group(
        item.prompt,
        (item.chosen, item.rejected),
        ("chosen", "rejected"),
        f"subset {item.subset!r}",
        (item.chosen_fields, item.rejected_fields),
    )


def _judged(item: Comparison, scored: Scored, prompt: int) -> _Judged:
    chosen, rejected = scored.rewards
    return _Judged(
        scored.id,
        prompt,
        item.subset,
        chosen,
        rejected,
        chosen > rejected,
        len(item.chosen),
        len(item.rejected),
        item.strength,
    )


def _row(row: _Judged) -> dict[str, Any]:
    return {name: value for name, value in asdict(row).items() if value is not None}


def _details(rows: Sequence[_Judged]) -> dict[str, Any]:
    outcomes = [(row.correct, row.prompt) for row in rows]
    chosen, rejected = [row.reward_chosen for row in rows], [row.reward_rejected for row in rows]
    lengths = [row.length_chosen for row in rows], [row.length_rejected for row in rows]
    return {
        "calibration": calibration(
            [good - bad for good, bad in zip(chosen, rejected, strict=True)], [row.prompt for row in rows]
        ),
        "strengths": by_strength(outcomes, [row.strength for row in rows]),
        "lengths": by_length(outcomes, *lengths),
        "scores": score_distribution(chosen, rejected),
    }


def _subsets(rows: Sequence[_Judged]) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[_Judged]] = {}
    for row in rows:
        groups.setdefault(row.subset, []).append(row)
    return {
        subset: {
            **shares([(row.correct, row.prompt) for row in group]),
            "ties": sum(row.reward_chosen == row.reward_rejected for row in group),
            "length_baseline": sum(row.length_chosen > row.length_rejected for row in group) / len(group),
            "shortest_baseline": sum(row.length_chosen < row.length_rejected for row in group) / len(group),
        }
        for subset, group in groups.items()
    }


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
