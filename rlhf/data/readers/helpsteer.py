"""NVIDIA's own row schemas, HelpSteer2 and HelpSteer2-Preference, as records.

A prompt of several turns is one string there, its turns parted by `\\n<extra_id_1>Assistant\\n` and
`\\n<extra_id_1>User\\n`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rlhf.core.errors import DataError
from rlhf.core.records import (
    HELPSTEER_ATTRIBUTES,
    Conversation,
    Justification,
    Message,
    Preference,
    Prompt,
    Rating,
)
from rlhf.data import rules
from rlhf.data.annotations import NEITHER_VALID, aggregate, aggregate_ratings
from rlhf.data.sources.rows import Row, is_number
from rlhf.data.verdicts import read_verdict

if TYPE_CHECKING:
    from rlhf.config.schema import DataSource

TURN = re.compile(r"\n<extra_id_1>(User|Assistant)\n")
STRONGEST = 3
STRENGTH = "preference_strength"
ANNOTATIONS = "all_preferences_unprocessed"


def split_turns(text: str) -> Conversation:
    """A prompt string as messages; the first turn is the user's."""
    first, *rest = TURN.split(text)
    turns = zip(rest[::2], rest[1::2], strict=True)
    later = (Message("user" if name == "User" else "assistant", content) for name, content in turns)
    return (Message("user", first), *later)


def prompt(row: Row, source: DataSource) -> Prompt:
    """The prompt of a row of either schema."""
    messages = split_turns(row.text("prompt"))
    rules.require_prompt(messages)
    return Prompt(messages, source=source.path)


def rating(row: Row, source: DataSource, *, max_spread: int) -> Rating:
    """A row of HelpSteer2: `prompt`, `response` and five attributes on the scale 0 to 4.

    In its file `disagreements` each attribute is a list, one rating an annotator: these are aggregated by the
    rules of `rlhf.data.annotations`.

    Raises:
        DataError: a column is missing, of the wrong type or out of range.
        UnusableRowError: a rule says why the row is of no use.
    """
    messages, response = split_turns(row.text("prompt")), row.text("response")
    people = annotators_ratings(row)
    ratings = {} if people else {name: row.number(name, 0, 4) for name in HELPSTEER_ATTRIBUTES}
    rules.require_prompt(messages)
    rules.require_responses(response)
    if people:
        aggregated = aggregate_ratings(people, max_spread)
        if isinstance(aggregated, str):
            raise rules.UnusableRowError(aggregated)
        ratings = aggregated
    return Rating(messages, response, ratings, source=source.path)


def preference(row: Row, source: DataSource, *, max_spread: int) -> Preference:
    """A row of HelpSteer2-Preference: `prompt`, `response_1`, `response_2` and how strongly one is preferred.

    `annotations: published` takes `preference_strength`, NVIDIA's aggregate: the public file holds the tasks
    whose annotators agree, so that dropping its zeros gives the paper's set. `annotations: raw` aggregates
    `all_preferences_unprocessed` by the rules of `rlhf.data.annotations`.

    Raises:
        DataError: a column is missing, of the wrong type or out of range.
        UnusableRowError: a rule says why the row is of no use.
    """
    messages = split_turns(row.text("prompt"))
    first, second = row.text("response_1"), row.text("response_2")
    raw = source.annotations == "raw"
    strengths = annotators_strengths(row) if raw else []
    stated = 0 if raw else published_strength(row)
    rules.require_prompt(messages)
    rules.require_responses(first, second)
    rules.require_difference(first, second)
    if raw:
        result = aggregate(strengths, max_spread)
        if result.strength is None:
            raise rules.UnusableRowError(result.reason)
        stated = result.strength
    rules.require_strength(stated)
    return Preference(messages, first, second, stated, source=source.path)


def justification(row: Row, source: DataSource, *, max_spread: int) -> Justification:
    """A row of HelpSteer2-Preference with `preference_elaboration` and `preference_statement`.

    Raises:
        DataError: a column is missing, of the wrong type or out of range.
        UnusableRowError: the statement has no verdict that agrees with the preference, or another rule says
            why.
    """
    pair = preference(row, source, max_spread=max_spread)
    elaboration, statement = row.text("preference_elaboration"), row.text("preference_statement")
    verdict = read_verdict(statement)
    if not elaboration.strip() or verdict is None or (verdict > 0) != (pair.strength > 0):
        raise rules.UnusableRowError(rules.NO_JUSTIFICATION)
    return Justification(
        pair.prompt,
        pair.response_1,
        pair.response_2,
        elaboration,
        statement,
        pair.strength,
        source=source.path,
    )


def published_strength(row: Row) -> int:
    """NVIDIA's aggregate, -3..3.

    Raises:
        DataError: the row has none, or one out of range.
    """
    if row.find(STRENGTH) is None and row.find(ANNOTATIONS) is not None:
        raise DataError(
            f"{row.place}: no {STRENGTH!r}, but raw annotations",
            allowed=f"a whole number from -{STRONGEST} to {STRONGEST} where `annotations: published`, the "
            "default",
            fix="set `annotations: raw` of this source",
        )
    return row.integer(STRENGTH, -STRONGEST, STRONGEST)


def annotators_strengths(row: Row) -> list[int]:
    """Every annotator's strength, -3..3 or `NEITHER_VALID`.

    Raises:
        DataError: the row has no list of annotations, or one of them is malformed.
    """
    value = row.find(ANNOTATIONS)
    allowed = f'a list of {{"strength": -{STRONGEST}..{STRONGEST}, or {NEITHER_VALID} for neither valid}}'
    if value is None:
        fix = "set `annotations: published` of this source, which takes `preference_strength`"
        raise DataError(f"{row.place}: no column {ANNOTATIONS!r}", allowed=allowed, fix=fix)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise row.wrong_item(ANNOTATIONS, allowed, lambda item: isinstance(item, dict))
    strengths = []
    for item in value:
        strength = item.get("strength")
        if isinstance(strength, bool) or strength not in (*range(-STRONGEST, STRONGEST + 1), NEITHER_VALID):
            raise row.wrong(ANNOTATIONS, allowed, value=item, around=strength)
        strengths.append(int(strength))
    return strengths


def annotators_ratings(row: Row) -> dict[str, list[int]]:
    """Every annotator's rating of each attribute, 0..4; empty where the row holds one number each.

    Raises:
        DataError: some attributes are lists and others are not, or a rating is out of range.
    """
    if not any(isinstance(row.find(name), list) for name in HELPSTEER_ATTRIBUTES):
        return {}
    allowed = "as for the other attributes, a list of whole numbers from 0 to 4, one an annotator"
    ratings: dict[str, list[int]] = {}
    for name in HELPSTEER_ATTRIBUTES:
        values = row.get(name)
        if not isinstance(values, list) or not all(map(_is_rating, values)):
            raise row.wrong_item(name, allowed, _is_rating)
        ratings[name] = [int(value) for value in values]
    return ratings


def _is_rating(value: Any) -> bool:
    return is_number(value) and value in range(5)
