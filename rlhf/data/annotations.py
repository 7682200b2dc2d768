"""Aggregate annotations: of a pair to one strength, of a response to one rating per attribute.

Strengths. Source: "HelpSteer2-Preference: Complementing Ratings with Preferences" (arXiv 2410.01257), the
section on annotation: an annotator picks -3, -2, -1 (response 1 much better, better, slightly better), 1, 2,
3 (response 2), or -100 (neither response is valid). The three most similar annotations are averaged and
rounded; a pair is dropped where these three spread over more than two steps, and where the result is 0. The
paper does not say how it breaks a tie between two equally similar triples; `three_most_similar` says how it
is broken here.

Ratings. Source: the card of nvidia/HelpSteer2 and arXiv 2406.08673: more annotators are asked where the first
three differ by more than two points of helpfulness, and a rating is the mean of the three who agree most,
rounded. The agreement is therefore read off helpfulness, and the three annotators found there give all five
attributes.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlhf.data import rules

NEITHER_VALID = -100
"""An annotator's mark that neither response is valid: not a strength."""

PAPER_SPREAD = 2
"""The largest difference of the three most similar annotations in both papers."""


@dataclass(frozen=True, slots=True)
class Aggregate:
    """One strength in -3..3 without 0, or the reason why there is none."""

    strength: int | None
    reason: str = ""


def three_most_similar(strengths: Sequence[int]) -> tuple[int, ...]:
    """The three strengths with the least spread, in the order given.

    Spread is max - min. Ties go to the triple closest to the median m of all valid strengths (least sum of |s
    - m|), then to the one whose annotators come first. `NEITHER_VALID` is left out.

    Raises:
        ValueError: fewer than three valid strengths.
    """
    return tuple(strengths[index] for index in most_similar_annotators(strengths))


def most_similar_annotators(values: Sequence[int]) -> tuple[int, ...]:
    """The places of the three most similar values, by the rule of `three_most_similar`.

    Raises:
        ValueError: fewer than three valid values.
    """
    valid = [index for index, value in enumerate(values) if value != NEITHER_VALID]
    if len(valid) < 3:
        raise ValueError(f"three valid strengths are needed, got {len(valid)}")
    median = statistics.median(values[index] for index in valid)

    def rank(triple: tuple[int, ...]) -> tuple[float, float]:
        chosen = [values[index] for index in triple]
        return max(chosen) - min(chosen), sum(abs(value - median) for value in chosen)

    return min(itertools.combinations(valid, 3), key=rank)


def overall(strengths: Sequence[int]) -> int:
    """The mean, rounded to the nearest integer; the mean of three integers is never halfway between two."""
    return round(sum(strengths) / len(strengths))


def aggregate(strengths: Sequence[int], max_spread: int) -> Aggregate:
    """One preference strength from raw annotations, by the three rules of the paper.

    Args:
        strengths: one per annotator, -3..3 or `NEITHER_VALID`.
        max_spread: largest max - min of the three most similar ones (the paper: 2).
    """
    if sum(strength != NEITHER_VALID for strength in strengths) < 3:
        return Aggregate(None, rules.FEW_ANNOTATIONS)
    triple = three_most_similar(strengths)
    if max(triple) - min(triple) > max_spread:
        return Aggregate(None, rules.disagreement(max_spread))
    strength = overall(triple)
    return Aggregate(strength) if strength != 0 else Aggregate(None, rules.TIE)


def agreeing_annotators(ratings: Mapping[str, Sequence[int]], max_spread: int) -> tuple[int, ...] | str:
    """The three annotators most similar in the first attribute, or the reason why there are none.

    Args:
        ratings: attribute -> one rating per annotator, the annotators in the same order.
        max_spread: largest max - min of the three in the first attribute (the paper: 2).
    """
    first, *rest = ratings.values()
    if any(len(values) != len(first) for values in rest):
        return rules.UNMATCHED_ANNOTATORS
    if len(first) < 3:
        return rules.FEW_ANNOTATIONS
    people = most_similar_annotators(first)
    agreed = [first[person] for person in people]
    return rules.disagreement(max_spread) if max(agreed) - min(agreed) > max_spread else people


def aggregate_ratings(ratings: Mapping[str, Sequence[int]], max_spread: int) -> dict[str, float] | str:
    """One rating of each attribute, or the reason why there is none.

    Each is the mean over the three `agreeing_annotators`, rounded to the nearest integer.
    """
    people = agreeing_annotators(ratings, max_spread)
    if isinstance(people, str):
        return people
    return {name: float(overall([values[p] for p in people])) for name, values in ratings.items()}
