"""Select the comparisons within a group of responses, and compute scores from the verdicts.

Pure functions. A group has G responses; a comparison is a pair of places (first shown, second shown).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

from reward.judge.forms import RANKINGS, JudgeVerdict

IndexPair = tuple[int, int]
Verdicts = Mapping[IndexPair, JudgeVerdict | None]
"""The verdicts on the pairs of one group; None where a text could not be read."""


def comparisons(
    size: int, pairing: Literal["circle", "all"], orders: Literal["both", "one"]
) -> list[IndexPair]:
    """The pairs of places of a group that are shown to the judge, each as (first, second).

        circle  (0, 1), (1, 2), ..., (G - 1, 0); two responses make one pair
        all     every i < j

    `both` adds each pair in reversed order.

    Raises:
        ValueError: a group of fewer than two responses cannot be compared.
    """
    if size < 2:
        raise ValueError(f"a pairwise judge needs at least two responses to a prompt; found {size}")
    if pairing == "all":
        pairs = list(itertools.combinations(range(size), 2))
    else:
        pairs = [(place, (place + 1) % size) for place in range(size if size > 2 else 1)]
    return pairs + [(second, first) for first, second in pairs] if orders == "both" else pairs


def scores_of(verdict: JudgeVerdict) -> tuple[float, float]:
    """Both scores of a comparison; where they are equal, the ranking decides by at most half a point each.

    s_1, s_2                          if s_1 != s_2
    s_1 + (3.5 - r) / 5, s_2 - (3.5 - r) / 5   otherwise, with r in 1..6
    """
    if verdict.first != verdict.second:
        return verdict.first, verdict.second
    shift = ((RANKINGS + 1) / 2 - verdict.ranking) / (RANKINGS - 1)
    return verdict.first + shift, verdict.second - shift


def group_scores(size: int, verdicts: Verdicts) -> list[float | None]:
    """The mean score of each response over its comparisons; None where no verdict could be read."""
    collected: list[list[float]] = [[] for _ in range(size)]
    for (first, second), verdict in verdicts.items():
        if verdict is not None:
            for place, score in zip((first, second), scores_of(verdict), strict=True):
                collected[place].append(score)
    return [sum(scores) / len(scores) if scores else None for scores in collected]


def position_bias(verdicts: Sequence[Verdicts]) -> tuple[float, float]:
    """(bias, agreement): the influence of the order of two responses, over pairs read in both orders.

        bias       mean of (score of the response shown first - score of the one shown second); 0 without bias
        agreement  share of pairs for which both orders prefer the same response, or both prefer none

    NaN where no pair was read in both orders.
    """
    differences, agreements = list[float](), list[bool]()
    for group in verdicts:
        for (first, second), verdict in group.items():
            other = group.get((second, first))
            if first > second or verdict is None or other is None:
                continue
            forward, backward = scores_of(verdict), scores_of(other)
            differences += [forward[0] - forward[1], backward[0] - backward[1]]
            agreements.append(_sign(forward[0] - forward[1]) == _sign(backward[1] - backward[0]))
    if not agreements:
        return math.nan, math.nan
    return sum(differences) / len(differences), sum(agreements) / len(agreements)


def votes(verdicts: Verdicts) -> list[int | None]:
    """The vote of each order on a pair: +1 (response 0 preferred), -1 (response 1) or 0; None if unread."""
    signs = list[int | None]()
    for (first, _), verdict in verdicts.items():
        if verdict is None:
            signs.append(None)
        else:
            score, other = scores_of(verdict)
            signs.append(_sign(score - other) if first == 0 else _sign(other - score))
    return signs


def decision(verdicts: Verdicts) -> float | None:
    """The mean vote over both orders of a pair; None if one is unread, or the pair was not shown."""
    read = [vote for vote in votes(verdicts) if vote is not None]
    return sum(read) / len(read) if read and len(read) == len(verdicts) else None


def _sign(x: float) -> int:
    return (x > 0) - (x < 0)
