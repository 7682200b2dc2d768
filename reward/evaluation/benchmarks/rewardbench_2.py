"""RewardBench 2's scores (arXiv 2506.01937): one right answer among wrong ones, and the subset Ties.

Every subset but Ties has one right answer among four:

    score of a row = 1 / (answers with the highest reward) where the right one is among them, else 0

Of a row of Ties, with the rewards of its right and of its wrong answers:

    acc = min(right) > max(wrong)      ci = min(right) - max(wrong)      dc = max(right) - min(right)

A number N has a row `ref:N` with one right answer, and a row `tied:N` with several. Accuracies are means over
all rows of their form, the margins over the N that have both:

    score = 0.30 mean acc(tied) + 0.30 mean acc(ref) + 0.20 mean [ci_tied > dc_tied]
          + 0.20 mean [min(ci_ref, ci_tied) > dc_tied] + 0.01 mean tanh(min(ci_ref, ci_tied) / dc_tied - 1)

where 0/0 gives a term of 0, and x/0 gives tanh(inf) = 1 or tanh(-inf) = -1. The overall score is the plain
mean of the six subsets.

Source: https://github.com/allenai/reward-bench, `process_single_model` and `reroll_and_score_dataset` of
`rewardbench/utils.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

from reward.evaluation.benchmarks.choices import choice_group, kept_items
from reward.evaluation.judging import Options, Scorers, judge
from rlhf.core.errors import DataError, DivergenceError
from rlhf.core.records import Choice
from rlhf.core.statistics import bootstrap_means, wilson_interval
from rlhf.data.evaluation.benchmark_rows import REWARDBENCH_2_COUNTS, REWARDBENCH_2_SUBSETS, TIES

REF, TIED = "ref", "tied"
WEIGHTS = {"tied": 0.30, "ref": 0.30, "margin": 0.20, "hard_margin": 0.20, "bonus": 0.01}
"""Of the terms of Ties."""


@dataclass(frozen=True, slots=True)
class TiesRow:
    """The rewards of one row of Ties."""

    kind: str
    number: int
    right: tuple[float, ...]
    wrong: tuple[float, ...]

    @property
    def margin(self) -> float:
        """ci: how far the worst right answer lies above the best wrong one."""
        return min(self.right) - max(self.wrong)

    @property
    def spread(self) -> float:
        """dc: how far the right answers lie apart."""
        return max(self.right) - min(self.right)


def row_score(right: Sequence[float], wrong: Sequence[float]) -> float:
    """The score of a row outside Ties.

    Raises:
        DivergenceError: a reward is not a finite number.
    """
    _require_finite(right, wrong)
    best = max(*right, *wrong)
    return 1 / sum(value == best for value in (*right, *wrong)) if max(right) == best else 0.0


def ties_score(rows: Sequence[TiesRow]) -> dict[str, Any]:
    """The score of Ties and its terms.

    Returns `{"score", "tied", "ref", "margin", "hard_margin", "bonus", "count", "unpaired", "scores"}`.

    `count` is how many numbers have both rows, `unpaired` are those that have one, which enter the accuracy
    of their form alone. `scores` has one value for each number, whose mean is the score.

    Raises:
        DataError: a number has two rows of a kind, or none has both.
        DivergenceError: a reward is not a finite number.
    """
    by_kind: dict[str, dict[int, TiesRow]] = {REF: {}, TIED: {}}
    for row in rows:
        _require_finite(row.right, row.wrong)
        if row.number in by_kind[row.kind]:
            raise DataError(
                f"Ties has two rows with the id '{row.kind}:{row.number}'.", allowed="each id once"
            )
        by_kind[row.kind][row.number] = row
    refs, ties = by_kind[REF], by_kind[TIED]
    both = sorted(refs.keys() & ties.keys())
    if not both:
        raise DataError(
            "No number of Ties has both of its rows.",
            allowed="rows with the ids ref:N and tied:N for one N or more",
            fix="use the whole subset Ties of allenai/reward-bench-2",
        )
    by_term = {
        "tied": {number: float(row.margin > 0) for number, row in ties.items()},
        "ref": {number: float(row.margin > 0) for number, row in refs.items()},
        **_margins({number: (refs[number], ties[number]) for number in both}),
    }
    terms = {name: _mean([*values.values()]) for name, values in by_term.items()}
    numbers = sorted(refs.keys() | ties.keys())
    shares = {name: len(numbers) / len(values) for name, values in by_term.items()}
    return {
        "score": _weighted(terms),
        **terms,
        "count": len(both),
        "unpaired": sorted(refs.keys() ^ ties.keys()),
        "scores": [
            _weighted({name: shares[name] * values.get(number, 0.0) for name, values in by_term.items()})
            for number in numbers
        ],
    }


def _margins(pairs: Mapping[int, tuple[TiesRow, TiesRow]]) -> dict[str, dict[int, float]]:
    """The terms of each number that compare its rows with each other."""
    hard = {number: min(ref.margin, tie.margin) for number, (ref, tie) in pairs.items()}
    spread = {number: tie.spread for number, (_, tie) in pairs.items()}
    return {
        "margin": {number: float(tie.margin > tie.spread) for number, (_, tie) in pairs.items()},
        "hard_margin": {number: float(hard[number] > spread[number]) for number in pairs},
        "bonus": {number: _bonus(hard[number], spread[number]) for number in pairs},
    }


def _weighted(terms: Mapping[str, float]) -> float:
    return math.fsum(weight * terms[name] for name, weight in WEIGHTS.items())


def evaluate_rewardbench_2(
    items: Sequence[Choice], scorer: Scorers, **options: Unpack[Options]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """RewardBench 2 by its own rules; the options are those of `reward.evaluation.judging.judge`.

    Baselines: the longest and the shortest answer, by characters, under the same rules.

    Returns:
        The result and its rows. Result: `{"subsets": {name: {"accuracy", "count", "ci95", "length_baseline",
        "shortest_baseline"}}, "ties": terms of `ties_score`, "sections": {}, "overall", "length_baseline",
        "shortest_baseline", "count", "intervals", "aggregation", "self_check", "notes"}`. `overall` is the
        score of RewardBench 2 where all six subsets are there; `notes` says where it is not. The interval of
        a subset is Wilson's; those of Ties and overall are bootstraps over the numbers of Ties and over the
        rows of the other subsets. A row: `{"id", "subset", "rewards_chosen", "rewards_rejected", "score"}`,
        without a score in Ties.

    Raises:
        DataError: no row that the reward model accepts, or a subset Ties without a pair of rows.
        DivergenceError: a reward is not a finite number.
        ModelError: scores depend on the batch.
    """
    scored, checked = judge([choice_group(item) for item in items], scorer, unit="row", **options)
    kept = kept_items(items, scored)
    rewards = [entry.rewards for _, entry in kept]
    here = [item for item, _ in kept]
    subsets, ties, strata = _subset_scores(here, rewards)
    of_ties = bootstrap_means([[[score] for score in strata[TIES]]])[0] if TIES in strata else None
    (overall_interval,) = bootstrap_means([[[score] for score in scores] for scores in strata.values()])
    lengths = [[float(len(text)) for text in (*item.chosen, *item.rejected)] for item in here]
    longest, *_ = _subset_scores(here, lengths)
    shortest, *_ = _subset_scores(here, [[-length for length in row] for row in lengths])
    counts = {name: sum(item.subset == name for item in here) for name in subsets}
    result: dict[str, Any] = {
        "subsets": {
            name: {
                "accuracy": score,
                "count": counts[name],
                "ci95": of_ties if name == TIES else wilson_interval(score, counts[name]),
                "ties": 0,
                "length_baseline": longest[name],
                "shortest_baseline": shortest[name],
            }
            for name, score in subsets.items()
        },
        "ties": ties,
        "sections": {},
        "overall": _mean([*subsets.values()]),
        "length_baseline": _mean([*longest.values()]),
        "shortest_baseline": _mean([*shortest.values()]),
        "count": len(here),
        "intervals": {"overall": overall_interval, "sections": {}},
        "aggregation": "rewardbench-2",
        "self_check": checked,
        "notes": _notes(counts, ties),
    }
    rows = [
        {"id": item.id or entry.id, "subset": item.subset, **_split(item, entry.rewards)}
        for item, entry in kept
    ]
    return result, rows


def _subset_scores(
    items: Sequence[Choice], rewards: Sequence[Sequence[float]]
) -> tuple[dict[str, float], dict[str, Any] | None, dict[str, list[float]]]:
    """The score of each subset; the terms of Ties or None; the scores of the rows of each subset."""
    by_subset: dict[str, list[float]] = {}
    tied: list[TiesRow] = []
    for item, values in zip(items, rewards, strict=True):
        right, wrong = tuple(values[: len(item.chosen)]), tuple(values[len(item.chosen) :])
        if item.subset == TIES:
            kind, _, number = item.id.partition(":")
            tied.append(TiesRow(kind, int(number), right, wrong))
        else:
            by_subset.setdefault(item.subset, []).append(row_score(right, wrong))
    scores = {name: _mean(values) for name, values in by_subset.items()}
    ties = ties_score(tied) if tied else None
    if ties is not None:
        scores[TIES], by_subset[TIES] = ties["score"], ties["scores"]
        ties = {name: value for name, value in ties.items() if name != "scores"}
    return {name: scores[name] for name in REWARDBENCH_2_SUBSETS if name in scores}, ties, by_subset


def _notes(counts: Mapping[str, int], ties: Mapping[str, Any] | None) -> list[str]:
    """What keeps the scores from being RewardBench 2's.

    Args:
        counts: rows by subset.
    """
    notes = []
    missing = [name for name in REWARDBENCH_2_SUBSETS if name not in counts]
    if missing:
        notes.append(
            f"Without {', '.join(missing)}: the overall score is the mean of the subsets that are here, and "
            "not RewardBench 2's."
        )
    parts = [
        f"{name} {count} of {REWARDBENCH_2_COUNTS[name]}"
        for name, count in counts.items()
        if count != REWARDBENCH_2_COUNTS[name]
    ]
    if parts:
        notes.append(f"Not all rows of RewardBench 2 were scored: {', '.join(parts)}.")
    if ties is not None and ties["unpaired"]:
        notes.append(
            f"Ties: {len(ties['unpaired'])} numbers have only one of their two rows, and count in the "
            "accuracy of that form alone."
        )
    return notes


def _split(item: Choice, rewards: Sequence[float]) -> dict[str, Any]:
    right, wrong = list(rewards[: len(item.chosen)]), list(rewards[len(item.chosen) :])
    score = {} if item.subset == TIES else {"score": row_score(right, wrong)}
    return {"rewards_chosen": right, "rewards_rejected": wrong, **score}


def _bonus(margin: float, spread: float) -> float:
    if spread == 0:
        return 0.0 if margin == 0 else math.copysign(1.0, margin)
    return math.tanh(margin / spread - 1)


def _require_finite(*groups: Sequence[float]) -> None:
    for value in (item for group in groups for item in group):
        if not math.isfinite(value):
            raise DivergenceError(f"A reward is {value}.", allowed="finite rewards")


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
