"""Agreement of annotators before and after the rules of `rlhf.data.annotations`; our and NVIDIA's aggregate.

Weighted kappa over tasks, each with two or more anonymous annotators:

    kappa = 1 - observed / expected
    observed    mean weight over all ordered pairs of different annotators of one task
    expected    mean weight of two values drawn independently from the values in those pairs
    weight      linear |a - b|, or quadratic (a - b)^2, on the values themselves: -1 and 1 are two steps apart

With two annotators a task and the same distribution for both it is Cohen's weighted kappa.
HelpSteer2-Preference (arXiv 2410.01257) reports 0.489 before and 0.878 after its processing, and does not say
with which weights and which pairs of annotators; both weights are given here.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlhf.data import rules
from rlhf.data.annotations import NEITHER_VALID, aggregate, agreeing_annotators, three_most_similar
from rlhf.data.readers import helpsteer3
from rlhf.data.readers.helpsteer import ANNOTATIONS, STRENGTH, annotators_ratings, annotators_strengths
from rlhf.data.sources.rows import read_rows

if TYPE_CHECKING:
    from rlhf.config.schema import DataSource

WEIGHTS: Mapping[str, Callable[[int, int], int]] = {
    "linear": lambda a, b: abs(a - b),
    "quadratic": lambda a, b: (a - b) ** 2,
}
SHOWN = 5
"""Differing rows that a report keeps."""
THREE = "three_most_similar_preferences"

Kappas = dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Annotated:
    """One pair of responses with its annotations, and the published aggregate if there is one."""

    place: str
    strengths: tuple[int, ...]
    published: int | None = None
    published_three: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Agreement:
    """The result of `agreement`; an aggregate is a strength, `0`, or the reason for its absence."""

    pairs: int
    annotations: int
    """Valid ones; `invalid` call neither response valid."""
    invalid: int
    kappa_before: Kappas
    """Over all valid annotations."""
    kappa_after: Kappas
    """Over the three most similar annotations of the pairs that are kept."""
    kept: int
    dropped: dict[str, int]
    strengths: dict[int, int]
    """How many kept pairs have which strength."""
    second_preferred: float | None
    """Share of the kept pairs whose second response is preferred; 0.5 without a position bias."""
    compared: int
    """Pairs with a published strength."""
    equal: int
    confusion: dict[str, dict[str, int]]
    """Published strength -> our aggregate -> pairs."""
    differing: list[dict[str, Any]] = field(default_factory=list)
    """The first rows that differ."""
    compared_three: int = 0
    """Pairs whose three most similar annotations are published."""
    equal_three: int = 0


def weighted_kappa(tasks: Iterable[Sequence[int]], weights: str) -> float | None:
    """Weighted kappa; None where every value is the same, or no task has two annotators."""
    weight = WEIGHTS[weights]
    together: Counter[tuple[int, int]] = Counter()
    for task in tasks:
        together.update(itertools.permutations(task, 2))
    values: Counter[int] = Counter()
    for (value, _), count in together.items():
        values[value] += count
    total = together.total()
    expected = sum(m * n * weight(a, b) for a, m in values.items() for b, n in values.items())
    if expected == 0:
        return None
    observed = sum(count * weight(a, b) for (a, b), count in together.items())
    return 1 - observed * total / expected


def kappas(tasks: Sequence[Sequence[int]]) -> Kappas:
    """Weighted kappa with each of `WEIGHTS`."""
    return {weights: weighted_kappa(tasks, weights) for weights in WEIGHTS}


def agreement(items: Iterable[Annotated], max_spread: int) -> Agreement | None:
    """Kappa, drops and strengths of annotated pairs, and our aggregate beside the published one.

    Args:
        max_spread: see `rlhf.data.annotations.aggregate`.
    """
    pairs = list(items)
    if not pairs:
        return None
    valid = [[strength for strength in item.strengths if strength != NEITHER_VALID] for item in pairs]
    results = [aggregate(item.strengths, max_spread) for item in pairs]
    kept = [(item, r.strength) for item, r in zip(pairs, results, strict=True) if r.strength is not None]
    confusion: dict[str, dict[str, int]] = {}
    differing: list[dict[str, Any]] = []
    compared = equal = compared_three = equal_three = 0
    for item, result in zip(pairs, results, strict=True):
        ours = "0" if result.reason == rules.TIE else result.reason or signed(result.strength or 0)
        if item.published is not None:
            theirs = signed(item.published)
            cell = confusion.setdefault(theirs, {})
            cell[ours] = cell.get(ours, 0) + 1
            compared, equal = compared + 1, equal + (ours == theirs)
            if ours != theirs and len(differing) < SHOWN:
                row = {"place": item.place, "annotations": list(item.strengths)}
                differing.append({**row, "published": theirs, "ours": ours})
        if item.published_three is not None and result.reason != rules.FEW_ANNOTATIONS:
            compared_three += 1
            equal_three += sorted(three_most_similar(item.strengths)) == sorted(item.published_three)
    strengths = Counter(strength for _, strength in kept)
    return Agreement(
        pairs=len(pairs),
        annotations=sum(map(len, valid)),
        invalid=sum(item.strengths.count(NEITHER_VALID) for item in pairs),
        kappa_before=kappas(valid),
        kappa_after=kappas([three_most_similar(item.strengths) for item, _ in kept]),
        kept=len(kept),
        dropped=dict(Counter(result.reason for result in results if result.reason).most_common()),
        strengths=dict(sorted(strengths.items())),
        second_preferred=sum(strength > 0 for _, strength in kept) / len(kept) if kept else None,
        compared=compared,
        equal=equal,
        confusion=dict(sorted(confusion.items(), key=lambda entry: int(entry[0]))),
        differing=differing,
        compared_three=compared_three,
        equal_three=equal_three,
    )


def rating_agreement(
    rows: Iterable[Mapping[str, Sequence[int]]], max_spread: int
) -> dict[str, dict[str, Kappas]]:
    """For each attribute kappa over all annotators, and over those of the responses whose ratings are kept.

    Args:
        rows: attribute -> one rating per annotator, for each response.
        max_spread: see `rlhf.data.annotations.aggregate_ratings`.
    """
    before: dict[str, list[Sequence[int]]] = {}
    after: dict[str, list[Sequence[int]]] = {}
    for row in rows:
        for name, values in row.items():
            before.setdefault(name, []).append(values)
        people = agreeing_annotators(row, max_spread)
        if not isinstance(people, str):
            for name, values in row.items():
                after.setdefault(name, []).append([values[person] for person in people])
    return {
        name: {"before": kappas(all_), "after": kappas(after.get(name, []))} for name, all_ in before.items()
    }


def annotated_pairs(source: DataSource, *, seed: int) -> Iterator[Annotated]:
    """The rows of a source of HelpSteer2-Preference, or of HelpSteer3, that hold raw annotations.

    Raises:
        DataError: a malformed row.
    """
    for row in read_rows(source, seed=seed):
        if source.format == "helpsteer3":
            if row.find(helpsteer3.INDIVIDUAL):
                published = (
                    None if row.find(helpsteer3.OVERALL) is None else row.integer(helpsteer3.OVERALL, -3, 3)
                )
                yield Annotated(row.place, tuple(helpsteer3.individual_strengths(row)), published)
        elif row.find(ANNOTATIONS) is not None:
            published = None if row.find(STRENGTH) is None else row.integer(STRENGTH, -3, 3)
            yield Annotated(row.place, tuple(annotators_strengths(row)), published, _three(row.find(THREE)))


def annotated_ratings(source: DataSource, *, seed: int) -> Iterator[dict[str, list[int]]]:
    """The ratings of all annotators, of the rows of a HelpSteer2 source that hold them.

    Raises:
        DataError: a malformed row.
    """
    for row in read_rows(source, seed=seed):
        if ratings := annotators_ratings(row):
            yield ratings


def signed(strength: int) -> str:
    """A strength as it is written: +2, -1, 0."""
    return f"{strength:+d}" if strength else "0"


def _three(value: Any) -> tuple[int, ...] | None:
    """The strengths of `three_most_similar_preferences`, which nothing but a comparison reads."""
    if not isinstance(value, list) or len(value) != 3:
        return None
    strengths = [item.get("strength") for item in value if isinstance(item, dict)]
    whole = tuple(strength for strength in strengths if isinstance(strength, int))
    return whole if len(whole) == 3 else None
