"""Three to five annotators of one pair become one preference strength.

Source: "HelpSteer2-Preference: Complementing Ratings with Preferences" (arXiv 2410.01257), the section on
annotation: an annotator picks -3, -2, -1 (response 1 much better, better, slightly better), 1, 2, 3 (response
2), or -100 (neither response is valid). The three most similar annotations are averaged and rounded; a pair
is dropped where these three spread over more than two steps, and where the result is 0. The paper does not
say how it breaks a tie between two equally similar triples; `three_most_similar` says how it is broken here.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf.data import rules

NEITHER_VALID = -100
"""An annotator's mark that neither response is valid: not a strength."""


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
    valid = [strength for strength in strengths if strength != NEITHER_VALID]
    if len(valid) < 3:
        raise ValueError(f"three valid strengths are needed, got {len(valid)}")
    median = statistics.median(valid)

    def rank(triple: tuple[int, ...]) -> tuple[float, float]:
        return max(triple) - min(triple), sum(abs(strength - median) for strength in triple)

    return min(itertools.combinations(valid, 3), key=rank)


def overall(strengths: Sequence[int]) -> int:
    """The mean, rounded to the nearest integer; the mean of three integers is never halfway between two."""
    return round(sum(strengths) / len(strengths))


def aggregate(strengths: Sequence[int], max_spread: int) -> Aggregate:
    """One preference strength from raw annotations, by the three rules of the paper.

    Args:
        strengths: one a person, -3..3 or `NEITHER_VALID`.
        max_spread: largest max - min of the three most similar ones (the paper: 2).
    """
    if sum(strength != NEITHER_VALID for strength in strengths) < 3:
        return Aggregate(None, rules.FEW_ANNOTATIONS)
    triple = three_most_similar(strengths)
    if max(triple) - min(triple) > max_spread:
        return Aggregate(None, f"annotators disagree (spread > {max_spread})")
    strength = overall(triple)
    return Aggregate(strength) if strength != 0 else Aggregate(None, rules.TIE)
