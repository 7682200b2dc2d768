"""Preferences from ratings: two responses to one prompt with different ratings.

Source: the DPO set of HelpSteer2 (arXiv 2406.08673): the response of higher helpfulness is chosen, ties are
dropped. The paper uses no strength; the rule for it is ours.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from rlhf.core.records import Conversation, Message, Preference, Rating
from rlhf.data import rules
from rlhf.data.drops import DropReport, place_of

WEAKEST, STRONGEST = 1, 3
PREFERRED_ALREADY = "rated pair that has a preference already"
SOURCE = "rated pairs"


def pair_rated(
    ratings: Sequence[Rating], attribute: str, *, among: Sequence[Preference] = ()
) -> tuple[list[Preference], DropReport]:
    """A preference for every two responses to one prompt whose ratings of `attribute` differ.

        |strength| = clamp(round(|difference|), 1, 3), halves rounded up; the higher rated response is
        preferred

    A response rated more than once counts with its mean. The preferences carry no ratings yet: `join_ratings`
    attaches each of them once, however many pairs a response is in. In the report each pair counts as one
    row.

    Args:
        attribute: the one that decides; responses without it make no pair.
        among: preferences that are there already; their pairs are not made again.
    """
    known = {(item.prompt, frozenset(item.messages)) for item in among}
    report, made = DropReport(), list[Preference]()
    for prompt, rated in _by_prompt(ratings, attribute).items():
        for (first, ratings_1), (second, ratings_2) in itertools.combinations(rated.items(), 2):
            source = f"{ratings_1[0].source}: {SOURCE}" if ratings_1[0].source else SOURCE
            place = f"{place_of(ratings_1[0])} and {place_of(ratings_2[0])}"
            report.read += 1
            difference = _mean(ratings_2, attribute) - _mean(ratings_1, attribute)
            if (prompt, frozenset((first, second))) in known:
                report.drop(PREFERRED_ALREADY, place)
                continue
            if difference == 0:
                report.drop(rules.TIE, place)
                continue
            try:
                rules.require_difference(first, second)
            except rules.UnusableRowError as unusable:
                report.drop(str(unusable), place)
                continue
            made.append(
                Preference(
                    prompt,
                    first.content,
                    second.content,
                    strength_of(difference),
                    source=source,
                    fields_1=first.fields,
                    fields_2=second.fields,
                    place=place,
                )
            )
    return made, DropReport(sources={SOURCE: report}).merge(report)


def strength_of(difference: float) -> int:
    """The strength of a pair whose second response is rated higher by `difference`, which is not 0."""
    size = min(STRONGEST, max(WEAKEST, math.floor(abs(difference) + 0.5)))
    return size if difference > 0 else -size


def _by_prompt(
    ratings: Sequence[Rating], attribute: str
) -> Mapping[Conversation, dict[Message, list[Rating]]]:
    """Prompt -> response -> its ratings, in their order."""
    grouped: dict[Conversation, dict[Message, list[Rating]]] = {}
    for rating in ratings:
        if attribute in rating.ratings:
            grouped.setdefault(rating.prompt, {}).setdefault(rating.message, []).append(rating)
    return grouped


def _mean(group: Sequence[Rating], attribute: str) -> float:
    return math.fsum(rating.ratings[attribute] for rating in group) / len(group)
