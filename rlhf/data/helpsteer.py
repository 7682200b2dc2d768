"""NVIDIA's own row schemas, HelpSteer2 and HelpSteer2-Preference, as records.

A prompt of several turns is one string there, its turns parted by `\\n<extra_id_1>Assistant\\n` and
`\\n<extra_id_1>User\\n`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rlhf.core.records import HELPSTEER_ATTRIBUTES, Conversation, Message, Preference, Prompt, Rating
from rlhf.data import rules
from rlhf.data.annotations import NEITHER_VALID, aggregate
from rlhf.data.rows import Row

if TYPE_CHECKING:
    from rlhf.config.schema import DataSource

TURN = re.compile(r"\n<extra_id_1>(User|Assistant)\n")
STRONGEST = 3
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


def rating(row: Row, source: DataSource) -> Rating:
    """A row of HelpSteer2: `prompt`, `response` and five attributes on the scale 0 to 4.

    Raises:
        DataError: a column is missing, of the wrong type or out of range.
        UnusableRowError: a rule says why the row is of no use.
    """
    messages, response = split_turns(row.text("prompt")), row.text("response")
    ratings = {attribute: row.number(attribute, 0, 4) for attribute in HELPSTEER_ATTRIBUTES}
    rules.require_prompt(messages)
    rules.require_responses(response)
    return Rating(messages, response, ratings, source=source.path)


def preference(row: Row, source: DataSource, *, max_spread: int) -> Preference:
    """A row of HelpSteer2-Preference: `prompt`, `response_1`, `response_2` and how strongly one is preferred.

    Where the raw annotations (`all_preferences_unprocessed`) are present they are aggregated by the rules of
    `rlhf.data.annotations`; elsewhere `preference_strength`, NVIDIA's own aggregate, is taken.

    Raises:
        DataError: a column is missing, of the wrong type or out of range.
        UnusableRowError: a rule says why the row is of no use.
    """
    messages = split_turns(row.text("prompt"))
    first, second = row.text("response_1"), row.text("response_2")
    strengths = _annotations(row)
    stated = 0 if strengths else row.integer("preference_strength", -STRONGEST, STRONGEST)
    rules.require_prompt(messages)
    rules.require_responses(first, second)
    rules.require_difference(first, second)
    if strengths:
        result = aggregate(strengths, max_spread)
        if result.strength is None:
            raise rules.UnusableRowError(result.reason)
        stated = result.strength
    rules.require_strength(stated)
    return Preference(messages, first, second, stated, source=source.path)


def _annotations(row: Row) -> list[int]:
    value = row.find(ANNOTATIONS)
    if not value:
        return []
    allowed = f'a list of {{"strength": -{STRONGEST}..{STRONGEST}, or {NEITHER_VALID} for neither valid}}'
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise row.wrong(ANNOTATIONS, allowed)
    strengths = []
    for item in value:
        strength = item.get("strength")
        if isinstance(strength, bool) or strength not in (*range(-STRONGEST, STRONGEST + 1), NEITHER_VALID):
            raise row.wrong(ANNOTATIONS, allowed)
        strengths.append(int(strength))
    return strengths
