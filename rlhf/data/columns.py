"""Any data set, by a map from our names to its columns.

`columns: {response: answer, correctness: ratings.factuality}` reads the response from the column `answer` and
the attribute `correctness` from the key `factuality` of the dictionary column `ratings`. Our names are those
of `FIELDS`, read under themselves where the map leaves them out; in a source of ratings every other name is
an attribute.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from rlhf.core.errors import ConfigError, did_you_mean
from rlhf.core.records import HELPSTEER_ATTRIBUTES, Comparison, Preference, Prompt, Rating
from rlhf.data import rules
from rlhf.data.messages import read_prompt, read_responses
from rlhf.data.rows import Row, is_number

if TYPE_CHECKING:
    from rlhf.config.schema import DataSource

Kind = Literal["ratings", "preferences", "prompts"]

FIELDS: Mapping[Kind, tuple[str, ...]] = {
    "ratings": ("prompt", "response", "ratings", "scale", "source"),
    "preferences": (
        "prompt",
        "response_1",
        "response_2",
        "preference_strength",
        "chosen",
        "rejected",
        "strength",
        "source",
    ),
    "prompts": ("prompt", "check", "source"),
}
STRONGEST = 3
HIGHEST = 4.0
SCALE_FIX = "set `scale: [lowest, highest]` of this source, or `scale: row`; or mend this row"


def check_columns(source: DataSource, kind: Kind) -> None:
    """Refuse a column map with a name that this kind of source does not have.

    Raises:
        ConfigError: an unknown name, or, among ratings, one that is a field elsewhere or nearly a field.
    """
    known = FIELDS[kind]
    every = {field for fields in FIELDS.values() for field in fields}
    for name in source.columns:
        misspelt = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
        attribute = kind == "ratings" and name not in every and not misspelt
        if name not in known and not attribute:
            raise ConfigError(
                f"columns.{name}: a source of {kind} has no {name!r}.{did_you_mean(name, known)}",
                allowed=", ".join(known) + (", or the name of an attribute" if kind == "ratings" else ""),
            )
    if source.scale != "row" and source.scale[0] >= source.scale[1]:
        raise ConfigError(f"scale: {list(source.scale)}", allowed="[lowest, highest], or `row`")


def attributes(source: DataSource) -> dict[str, str]:
    """The attributes a source names, each with the column it is read from; empty means all that a row has."""
    return {name: column for name, column in source.columns.items() if name not in FIELDS["ratings"]}


def prompt(row: Row, source: DataSource) -> Prompt:
    """A prompt to sample answers for; `check`, where it is present, is a dictionary."""
    column = _column(source, "check")
    check = row.find(column)
    if check is not None and not isinstance(check, dict):
        raise row.wrong(column, "a dictionary that says how to check an answer")
    messages = read_prompt(row, _column(source, "prompt"))
    rules.require_prompt(messages)
    return Prompt(messages, source=_origin(row, source), check=check)


def rating(row: Row, source: DataSource) -> Rating:
    """A rated response: linearly from the source's scale to 0..4.

    rating = 4 (value - lowest) / (highest - lowest)

    Attributes are those the column map names; with none named, every key of the dictionary column `ratings`;
    without such a column, those of HelpSteer2 that the row has. A null is an attribute that was not rated.

    Raises:
        DataError: a column is missing or of the wrong type, or a value lies outside the scale.
        UnusableRowError: a rule says why the row is of no use.
    """
    messages, (response,) = read_responses(row, _column(source, "prompt"), _column(source, "response"))
    low, high = _scale(row, source)
    ratings = {
        name: HIGHEST * (row.number(column, low, high, fix=SCALE_FIX) - low) / (high - low)
        for name, column in _rated(row, source).items()
        if row.find(column) is not None
    }
    rules.require_prompt(messages)
    rules.require_responses(response)
    if not ratings:
        raise rules.UnusableRowError(rules.NO_RATING)
    return Rating(messages, response, ratings, source=_origin(row, source))


def preference(row: Row, source: DataSource) -> Preference:
    """Two responses: either `response_1`, `response_2`, `preference_strength`, or `chosen`, `rejected`.

    The second form may have a `strength` of 0 to 3; without one the strength is the least, 1. The chosen
    response becomes `response_1`, so the record's strength is negative.

    Raises:
        DataError: a column is missing, of the wrong type or out of range.
        UnusableRowError: a rule says why the row is of no use.
    """
    names = {name: _column(source, name) for name in FIELDS["preferences"]}
    chosen_form = row.find(names["chosen"]) is not None and row.find(names["preference_strength"]) is None
    sides = ("chosen", "rejected") if chosen_form else ("response_1", "response_2")
    messages, (first, second) = read_responses(row, names["prompt"], *(names[side] for side in sides))
    if not chosen_form:
        strength = row.integer(names["preference_strength"], -STRONGEST, STRONGEST)
    elif row.find(names["strength"]) is not None or "strength" in source.columns:
        strength = -row.integer(names["strength"], 0, STRONGEST)
    else:
        strength = -1
    rules.require_prompt(messages)
    rules.require_responses(first, second)
    rules.require_difference(first, second)
    rules.require_strength(strength)
    return Preference(messages, first, second, strength, source=_origin(row, source))


def comparison(row: Row) -> Comparison:
    """A benchmark item in RewardBench's columns; an empty answer is a fair one to compare.

    It may have a `strength` of 0 to 3, or a signed `preference_strength`, of which only the size counts here.

    Raises:
        DataError: a column is missing or of the wrong type.
        UnusableRowError: a rule says why the row is of no use.
    """
    messages, (chosen, rejected) = read_responses(row, "prompt", "chosen", "rejected")
    subset = row.text("subset")
    section = "" if row.find("section") is None else row.text("section")
    rules.require_prompt(messages)
    rules.require_difference(chosen, rejected)
    return Comparison(messages, chosen, rejected, subset=subset, section=section, strength=_strength(row))


def _strength(row: Row) -> int | None:
    for column, low in (("strength", 0), ("preference_strength", -STRONGEST)):
        if row.find(column) is not None:
            strength = row.integer(column, low, STRONGEST)
            rules.require_strength(strength)
            return abs(strength)
    return None


def _column(source: DataSource, name: str) -> str:
    return source.columns.get(name, name)


def _origin(row: Row, source: DataSource) -> str:
    value = row.find(_column(source, "source"))
    return source.path if value is None else str(value)


def _scale(row: Row, source: DataSource) -> tuple[float, float]:
    if source.scale != "row":
        return source.scale
    value = row.find(_column(source, "scale"))
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not all(map(is_number, value))
        or value[0] >= value[1]
    ):
        raise rules.UnusableRowError(rules.SCALE_UNKNOWN)
    return value[0], value[1]


def _rated(row: Row, source: DataSource) -> dict[str, str]:
    if named := attributes(source):
        return named
    column = _column(source, "ratings")
    values = row.find(column)
    if isinstance(values, dict):
        return {str(key): f"{column}.{key}" for key in values}
    if values is not None:
        raise row.wrong(column, "a dictionary from attribute to number")
    present = {attribute: attribute for attribute in HELPSTEER_ATTRIBUTES if attribute in row.values}
    if not present:
        row.get(column)
    return present
