"""How far annotators agree, per person and overall, and which tasks need an adjudicator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.annotate.store import Annotation, by_task
from rlhf.data import rules
from rlhf.data.agreement import kappas
from rlhf.data.annotations import NEITHER_VALID, PAPER_SPREAD, aggregate


def strengths_of(annotations: Sequence[Annotation]) -> list[int]:
    """The preference of each final annotation, in their order."""
    return [a.submission.strength for a in annotations if a.submission.strength is not None]


def is_disputed(annotations: Sequence[Annotation], per_task: int, max_spread: int = PAPER_SPREAD) -> bool:
    """Whether the annotators of a complete task disagree by the paper's rules:
    `rlhf.data.annotations.aggregate`.

    A mean of 0 is no disagreement: such a pair has no preference.

    Three annotators of whom one or more call neither response valid have too few valid strengths, and are
    disputed unless all of them do.
    """
    strengths = strengths_of(annotations)
    if len(strengths) < per_task or all(strength == NEITHER_VALID for strength in strengths):
        return False
    result = aggregate(strengths, max_spread)
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
