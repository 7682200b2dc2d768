"""How far annotators agree, per person and overall, and which tasks need an adjudicator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.annotate.records import Annotation, by_task
from rlhf.data import rules
from rlhf.data.agreement import kappas
from rlhf.data.annotations import (
    NEITHER_VALID,
    PAPER_SPREAD,
    Aggregate,
    aggregate,
    aggregate_ratings,
)


def strengths_of(annotations: Sequence[Annotation]) -> list[int]:
    """The preference of each final annotation, in their order."""
    return [a.submission.strength for a in annotations if a.submission.strength is not None]


def agreed_strength(strengths: Sequence[int], max_spread: int, fewest: int = 3) -> Aggregate:
    """The strength of a task by the paper's rule, or of one or two annotators, where `fewest` allows it.

    Of one or two it is the mean, rounded towards 0; none where they differ by more than `max_spread`.
    """
    valid = [strength for strength in strengths if strength != NEITHER_VALID]
    if len(valid) >= 3 or len(valid) < fewest:
        return aggregate(strengths, max_spread)
    if max(valid) - min(valid) > max_spread:
        return Aggregate(None, rules.disagreement(max_spread))
    strength = int(sum(valid) / len(valid))
    return Aggregate(strength) if strength else Aggregate(None, rules.TIE)


def agreed_ratings(
    ratings: Mapping[str, Sequence[int]], max_spread: int, fewest: int = 3
) -> dict[str, float] | str:
    """One rating of each attribute, or the reason why there is none; rules as in `agreed_strength`."""
    first = next(iter(ratings.values()))
    if len(first) >= 3 or len(first) < fewest:
        return aggregate_ratings(ratings, max_spread)
    if max(first) - min(first) > max_spread:
        return rules.disagreement(max_spread)
    return {name: float(int(sum(values) / len(values))) for name, values in ratings.items()}


def is_disputed(annotations: Sequence[Annotation], per_task: int, max_spread: int = PAPER_SPREAD) -> bool:
    """Whether the annotators of a complete task disagree by `agreed_strength`.

    A mean of 0 is no disagreement: such a pair has no preference.

    Three annotators of whom one or more call neither response valid have too few valid strengths, and are
    disputed unless all of them do.
    """
    strengths = strengths_of(annotations)
    if len(strengths) < per_task or all(strength == NEITHER_VALID for strength in strengths):
        return False
    result = agreed_strength(strengths, max_spread, fewest=min(per_task, 3))
    return result.strength is None and result.reason != rules.TIE


def progress(
    tasks: int, annotations: Sequence[Annotation], per_task: int, adjudicated: set[int]
) -> dict[str, Any]:
    """Counts, kappa and disputes, as the page shows them.

    Returns:
        `annotations` and `wanted`, `tasks` and `complete`, `kappa` (linear and quadratic weighted kappa over
        all tasks), `disputed` (tasks that wait for an adjudicator), and by annotator `count`, `kappa`
        (linear, of the person with the others on the same tasks) and `seconds` (median of an annotation).
    """
    grouped = by_task(annotations)
    valid: dict[int, list[tuple[str, int]]] = {
        number: [(a.annotator, s) for a in group if (s := a.submission.strength) not in (None, NEITHER_VALID)]
        for number, group in grouped.items()
    }
    disputed = [n for n, group in grouped.items() if n not in adjudicated and is_disputed(group, per_task)]
    return {
        "annotations": len(annotations),
        "wanted": tasks * per_task,
        "tasks": tasks,
        "complete": sum(len(group) >= per_task for group in grouped.values()),
        "kappa": kappas([[strength for _, strength in group] for group in valid.values()]),
        "disputed": len(disputed),
        "adjudicated": len(adjudicated),
        "annotators": {
            name: {
                "count": sum(a.annotator == name for a in annotations),
                "kappa": _kappa_with_others(name, valid),
                "seconds": _median([a.seconds for a in annotations if a.annotator == name]),
            }
            for name in sorted({a.annotator for a in annotations})
        },
    }


def _kappa_with_others(name: str, valid: Mapping[int, Sequence[tuple[str, int]]]) -> float | None:
    """Linear kappa over the pairs of this person and one other on a task."""
    pairs = []
    for entries in valid.values():
        first = [strength for annotator, strength in entries if annotator == name]
        pairs += [[first[0], strength] for annotator, strength in entries if first and annotator != name]
    return kappas(pairs)["linear"]


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else 0.0
