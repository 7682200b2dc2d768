"""Evaluate a reward model on prompts with many answers: rated ones, or right ones among wrong ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar, Unpack

from reward.evaluation.benchmarks.aggregate import aggregate
from reward.evaluation.benchmarks.breakdown import shares
from reward.evaluation.best_of_n import Rated, best_of_all, best_of_n_curve, pair_accuracy
from reward.evaluation.judging import Group, Options, Scored, Scorers, judge
from rlhf.core.errors import DataError
from rlhf.core.records import Candidates, Choice
from rlhf.data.evaluation.benchmark_rows import TIES

Item = TypeVar("Item", Candidates, Choice)


def evaluate_best_of_n(
    items: Sequence[Candidates],
    scorer: Scorers,
    **options: Unpack[Options],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The quality of the picked answers; the options are those of `reward.evaluation.judging.judge`.

    Returns:
        The result and its rows. Result: `{"best_of_n": curve, "best_of_all": {...}, "pair_accuracy": {...},
        "subsets": {name: {"count", "best_of_n", "pair_accuracy"}}, "count", "self_check", "notes"}`, see
        `reward.evaluation.best_of_n`. There is no `overall`, since the scale of the scores is the file's own.
        A row: `{"id", "subset", "rewards", "scores", "pick"}`; `pick` is the index of the highest reward.

    Raises:
        DataError: no row that the reward model accepts.
        DivergenceError: a reward is not a finite number.
        ModelError: scores depend on the batch.
    """
    scored, checked = judge(
        [_candidates(item) for item in items],
        scorer,
        unit="row",
        **options,
    )
    kept = kept_items(items, scored)
    rows = [
        {
            "id": entry.id,
            "subset": item.subset,
            "rewards": list(entry.rewards),
            "scores": list(item.scores),
            "pick": max(range(len(entry.rewards)), key=entry.rewards.__getitem__),
        }
        for item, entry in kept
    ]
    rated = [Rated(entry.rewards, item.scores, _lengths(item.responses)) for item, entry in kept]
    subsets = {
        name: {"count": len(part), "best_of_n": best_of_n_curve(part), "pair_accuracy": pair_accuracy(part)}
        for name, part in _by_subset(kept, rated).items()
    }
    result = {
        "best_of_n": best_of_n_curve(rated),
        "best_of_all": best_of_all(rated),
        "pair_accuracy": pair_accuracy(rated),
        "subsets": subsets,
        "count": len(kept),
        "self_check": checked,
        "notes": [],
    }
    return result, rows


def evaluate_choices(
    items: Sequence[Choice],
    scorer: Scorers,
    **options: Unpack[Options],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """How often the best right answer beats every wrong one.

    The options are those of `reward.evaluation.judging.judge`.

    A tie with a wrong answer is wrong. The overall score is the plain mean of the subsets. RewardBench 2
    itself has rules of its own: `reward.evaluation.benchmarks.rewardbench_2`.

    Returns:
        The result and its rows. Result: `{"subsets": {name: {"accuracy", "count", "ci95", "ties",
        "length_baseline", "shortest_baseline", "chance"}}, "sections": {}, "overall", "length_baseline",
        "shortest_baseline", "chance", "count", "intervals": {"overall", "sections": {}}, "aggregation":
        "subsets", "best_of_n": curve with the true score 1 for right and 0 for wrong, "self_check",
        "notes"}`. `chance` is the expected accuracy of random rewards. A row: `{"id", "subset",
        "rewards_chosen", "rewards_rejected", "correct"}`.

    Raises:
        DataError: no row that the reward model accepts.
        DivergenceError: a reward is not a finite number.
        ModelError: scores depend on the batch.
    """
    scored, checked = judge(
        [choice_group(item) for item in items],
        scorer,
        unit="row",
        **options,
    )
    kept = kept_items(items, scored)
    rows = [_row(item, entry) for item, entry in kept]
    subsets = {name: _subset(part) for name, part in _by_subset(kept, kept).items()}
    correct = [row["correct"] for row in rows]
    subset_of, prompts = [item.subset for item, _ in kept], [item.prompt for item, _ in kept]
    _, overall, intervals = aggregate(correct, subset_of, [1.0] * len(kept), prompts)
    rated = [_right_or_wrong(item, entry) for item, entry in kept]
    result = {
        "subsets": subsets,
        "sections": {},
        "overall": overall,
        "length_baseline": _mean([part["length_baseline"] for part in subsets.values()]),
        "shortest_baseline": _mean([part["shortest_baseline"] for part in subsets.values()]),
        "chance": _mean([part["chance"] for part in subsets.values()]),
        "count": len(kept),
        "intervals": {"overall": intervals["overall"], "sections": {}},
        "aggregation": "subsets",
        "best_of_n": best_of_n_curve(rated),
        "self_check": checked,
        "notes": _notes([item for item, _ in kept]),
    }
    return result, rows


def _right_or_wrong(item: Choice, entry: Scored) -> Rated:
    """The answers with the true scores 1 for right and 0 for wrong."""
    scores = (1.0,) * len(item.chosen) + (0.0,) * len(item.rejected)
    return Rated(entry.rewards, scores, _lengths((*item.chosen, *item.rejected)))


def _row(item: Choice, entry: Scored) -> dict[str, Any]:
    chosen, rejected = _of_chosen(item, entry), _of_rejected(item, entry)
    return {
        "id": entry.id,
        "subset": item.subset,
        "rewards_chosen": list(chosen),
        "rewards_rejected": list(rejected),
        "correct": max(chosen) > max(rejected),
    }


def _subset(part: Sequence[tuple[Choice, Scored]]) -> dict[str, Any]:
    ends = [(max(_of_chosen(item, entry)), max(_of_rejected(item, entry))) for item, entry in part]
    longest = [max(map(len, item.chosen)) > max(map(len, item.rejected)) for item, _ in part]
    shortest = [min(map(len, item.chosen)) < min(map(len, item.rejected)) for item, _ in part]
    return {
        **shares(
            [(right > wrong, item.prompt) for (right, wrong), (item, _) in zip(ends, part, strict=True)]
        ),
        "ties": sum(right == wrong for right, wrong in ends),
        "length_baseline": sum(longest) / len(part),
        "shortest_baseline": sum(shortest) / len(part),
        "chance": _mean([len(item.chosen) / (len(item.chosen) + len(item.rejected)) for item, _ in part]),
    }


def _notes(items: Sequence[Choice]) -> list[str]:
    notes = []
    if any(item.subset == TIES for item in items):
        notes.append(
            "RewardBench 2 scores its subset Ties by a rule of its own, which needs the column `id` "
            "(ref:N, tied:N): without it the overall score is not the published one."
        )
    if all(len(item.chosen) == len(item.rejected) == 3 for item in items):
        notes.append(
            "Every row has three right and three wrong answers. If they are RM-Bench's, judge "
            "total_dataset.json, whose rows name their `domain`: it gives the matrix of styles."
        )
    return notes


def kept_items(items: Sequence[Item], scored: Sequence[Scored]) -> list[tuple[Item, Scored]]:
    """Each item that was scored, with its rewards.

    Raises:
        DataError: there is none.
    """
    if not scored:
        raise DataError(
            "There is no row to evaluate.", allowed="at least one row that the reward model accepts"
        )
    return [(items[entry.id - 1], entry) for entry in scored]


Part = TypeVar("Part")


def _by_subset(kept: Sequence[tuple[Item, Scored]], values: Sequence[Part]) -> dict[str, list[Part]]:
    """The values, one for each item, by the item's subset."""
    parts: dict[str, list[Part]] = {}
    for (item, _), value in zip(kept, values, strict=True):
        parts.setdefault(item.subset, []).append(value)
    return parts


def _of_chosen(item: Choice, entry: Scored) -> tuple[float, ...]:
    return entry.rewards[: len(item.chosen)]


def _of_rejected(item: Choice, entry: Scored) -> tuple[float, ...]:
    return entry.rewards[len(item.chosen) :]


def _lengths(answers: Sequence[str]) -> tuple[float, ...]:
    return tuple(float(len(answer)) for answer in answers)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _candidates(item: Candidates) -> Group:
    names = tuple(f"{number}." for number in range(1, len(item.responses) + 1))
    return Group(item.prompt, item.responses, names, f"subset {item.subset!r}")


def choice_group(item: Choice) -> Group:
    """The right and then the wrong answers of an item, to be scored together."""
    names = [f"{number}. chosen" for number in range(1, len(item.chosen) + 1)]
    names += [f"{number}. rejected" for number in range(1, len(item.rejected) + 1)]
    return Group(item.prompt, (*item.chosen, *item.rejected), tuple(names), f"subset {item.subset!r}")
