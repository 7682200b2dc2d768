"""Read any data set by a map from our names to its columns.

`columns: {response: answer, correctness: ratings.factuality}` reads the response from the column `answer` and
the attribute `correctness` from the key `factuality` of the dictionary column `ratings`. Our names are those
of `FIELDS`, read under themselves where the map leaves them out; in a source of ratings every other name is
an attribute.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from rlhf.core.errors import ConfigError, did_you_mean
from rlhf.core.records import HELPSTEER_ATTRIBUTES, Preference, Prompt, Rating
from rlhf.data import rules
from rlhf.data.checks import check_fault
from rlhf.data.pairs import strength_of
from rlhf.data.readers.layouts import MappedKind
from rlhf.data.readers.messages import read_answers, read_prompt
from rlhf.data.readers.unpaired import LABEL
from rlhf.data.readers.winners import MODEL_NAMES, winner_sign
from rlhf.data.sources.rows import JOIN, Row, is_number

if TYPE_CHECKING:
    from rlhf.config.schema import DataSource

FIELDS: Mapping[MappedKind, tuple[str, ...]] = {
    "ratings": ("prompt", "response", "ratings", "scale", "source", "system", "tools"),
    "preferences": (
        "prompt",
        "response_1",
        "response_2",
        "preference_strength",
        "winner",
        "chosen",
        "rejected",
        "strength",
        "response",
        "label",
        "source",
        "system",
        "tools",
    ),
    "prompts": ("prompt", "check", "source", "system", "tools"),
}
TEXTS = ("prompt", "response", "response_1", "response_2", "chosen", "rejected")
"""Our names of columns that hold texts or conversations."""
WHOLE_CONVERSATIONS = ("messages", "conversations", "conversation", "conversation_a", "chosen")
"""Columns whose last turn may be an answer, which is no part of the prompt."""
ONE_FORM = {
    "label": ("response_1", "response_2", "winner", "preference_strength", "chosen", "rejected", "strength"),
    "winner": ("preference_strength", "chosen", "rejected", "strength"),
    "preference_strength": ("chosen", "rejected", "strength"),
    "chosen": ("response_1", "response_2"),
}
"""Names that a column map cannot have together, since each form of a preference has its own."""
HIDDEN = frozenset({"prompts", "completions", "completion_ids"})
"""Arguments of reward functions that hide columns of the same name."""
STRONGEST = 3
MARGIN_FIX = (
    "leave `strength` out, so that every pair counts as 1; or scale the column to 0..3; or correct this row"
)
HIGHEST = 4.0
LABEL_FIX = (
    "a truth value is no rating: where it says that a response is good, name the file under `preferences`, "
    "with columns: {prompt: COLUMN, response: COLUMN, label: COLUMN}"
)
SCALE_FIX = (
    "if the scale is another one, set `scale: [lowest, highest]` (or `scale: row`) of this source; else "
    "correct the row"
)


def check_columns(source: DataSource, kind: MappedKind) -> None:
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
    _check_conflicts(source.columns)
    if source.scale != "row" and source.scale[0] >= source.scale[1]:
        raise ConfigError(f"scale: {list(source.scale)}", allowed="[lowest, highest], or `row`")


def _check_conflicts(mapped: Mapping[str, str]) -> None:
    """Refuse a map with two forms of a preference, or with one column for two texts."""
    for name, others in ONE_FORM.items():
        if name in mapped and (both := [other for other in others if other in mapped]):
            raise ConfigError(
                f"columns: {name} and {', '.join(both)} are two forms of a preference.",
                allowed="chosen and rejected (with strength), or response_1 and response_2 with winner or "
                "preference_strength, or response with label",
                fix=f"leave out {name}, or {', '.join(both)}",
            )
    texts = [name for name in TEXTS if name in mapped]
    for first, second in itertools.combinations(texts, 2):
        if mapped[first] == mapped[second]:
            raise ConfigError(
                f"columns: {first} and {second} are both {mapped[first]!r}.",
                allowed="a column of its own for each text",
                fix=f"correct columns.{first} or columns.{second}",
            )


def attributes(source: DataSource) -> dict[str, str]:
    """The attributes a source names, each with the column it is read from; empty means all that a row has."""
    return {name: column for name, column in source.columns.items() if name not in FIELDS["ratings"]}


def prompt(row: Row, source: DataSource) -> Prompt:
    """A prompt to sample answers for, with the row's other columns for reward functions.

    `check`, where it is a dictionary whose `family` the gold score knows, is checked by code; any other is a
    column.
    """
    column = _column(source, "check")
    check = row.find(column)
    fault = check_fault(check) if isinstance(check, dict) else "family"
    if fault not in (None, "family"):
        row.noted.add(
            f"column {column!r} is a column of its own, not a gold check: {fault!r} is missing or unusable"
        )
    names = {_column(source, name) for name in FIELDS["prompts"] if name != "check"}
    others = {name: value for name, value in row.values.items() if name not in names}
    if "check" in source.columns:
        others["check"] = check
    messages = read_prompt(_renamed(row, source), _column(source, "prompt"), source.encoding)
    if (
        messages[-1:]
        and messages[-1].role == "assistant"
        and _column(source, "prompt") in WHOLE_CONVERSATIONS
    ):
        messages = messages[:-1]
    rules.require_prompt(messages)
    row.noted.update(
        f"column {name!r} is not passed to reward functions: an argument of theirs has its name"
        for name in sorted(HIDDEN & others.keys())
    )
    return Prompt(messages, source=_origin(row, source), check=None if fault else check, columns=others)


def rating(row: Row, source: DataSource) -> Rating:
    """A rated response: linearly from the source's scale to 0..4.

    rating = 4 (value - lowest) / (highest - lowest)

    Attributes are those the column map names; with none named, every key of the dictionary column `ratings`;
    without such a column, those of HelpSteer2 that the row has. A null is an attribute that was not rated.

    Raises:
        DataError: a column is missing or of the wrong type, or a value lies outside the scale.
        UnusableRowError: a rule says why the row is of no use.
    """
    messages, (response,) = read_answers(
        _renamed(row, source),
        _column(source, "prompt"),
        _column(source, "response"),
        encoding=source.encoding,
    )
    low, high = _scale(row, source)
    ratings = {
        name: HIGHEST * (row.number(column, low, high, fix=_scale_fix(row, column)) - low) / (high - low)
        for name, column in _rated(row, source).items()
        if row.find(column) is not None
    }
    rules.require_prompt(messages)
    rules.require_responses(response)
    if not ratings:
        raise rules.UnusableRowError(rules.NO_RATING)
    return Rating(messages, response.content, ratings, source=_origin(row, source), fields=response.fields)


def preference(row: Row, source: DataSource, *, first_index: int = 0) -> Preference:
    """A preference: `response_1`, `response_2`, `preference_strength` or `winner`; or `chosen`, `rejected`.

    The last form, also that of rows which `unpaired` paired, may have a `strength` of 0 to 3; without one the
    strength is the least, 1. The chosen response becomes `response_1`, so the record's strength is negative.
    A winner has strength 1. A strength with a fraction is a margin: its size is rounded to 1, 2 or 3, halves
    up; only 0 is a tie.

    Args:
        first_index: what a numerical `winner` calls the first response, see `rlhf.data.readers.winners`.

    Raises:
        DataError: a column is missing, of the wrong type or out of range.
        UnusableRowError: a rule says why the row is of no use.
    """
    names = {name: _column(source, name) for name in FIELDS["preferences"]}
    form = form_of(row, source)
    responses = ("chosen", "rejected") if form == "chosen" else ("response_1", "response_2")
    messages, (first, second) = read_answers(
        _renamed(row, source), names["prompt"], *(names[side] for side in responses), encoding=source.encoding
    )
    if form == "winner":
        strength = winner_sign(row, names["winner"], names["response_1"], names["response_2"], first_index)
    elif form == "preference_strength":
        strength = row.integer(names["preference_strength"], -STRONGEST, STRONGEST)
    elif row.find(names["strength"]) is not None or "strength" in source.columns:
        strength = -margin_of(row, names["strength"])
    else:
        strength = -1
    rules.require_prompt(messages)
    rules.require_responses(first, second)
    rules.require_difference(first, second)
    rules.require_strength(strength)
    if form == "chosen":
        _note_scores(row)
    return Preference(
        messages,
        first.content,
        second.content,
        strength,
        source=_origin(row, source),
        fields_1=first.fields,
        fields_2=second.fields,
    )


def _note_scores(row: Row) -> None:
    """Note where the scores that UltraFeedback's layout has beside its responses do not agree with them."""
    chosen, rejected = row.find("score_chosen"), row.find("score_rejected")
    if is_number(chosen) and is_number(rejected) and chosen <= rejected:
        relation = "lower than" if chosen < rejected else "equal to"
        row.noted.add(f"score_chosen is {relation} score_rejected, and `chosen` counts as the better one")


def form_of(row: Row, source: DataSource) -> Literal["chosen", "winner", "preference_strength"]:
    """The form of a preference; keys that `columns` maps come before columns that are only present."""
    if LABEL in source.columns:  # rows that were paired
        return "chosen"
    for name in ("winner", "preference_strength", "chosen"):
        if name in source.columns:
            return name
    if row.find("preference_strength") is not None:
        return "preference_strength"
    if "chosen" in row.values:
        return "chosen"
    return "preference_strength" if row.find("winner") is None else "winner"


def strength_column(source: DataSource, row: Row) -> str | None:
    """The column that a source of preferences reads strengths from, if it does."""
    form = form_of(row, source)
    if form == "winner":
        return None
    column = _column(source, "strength" if form == "chosen" else "preference_strength")
    return column if row.find(column) is not None else None


def winner_column(source: DataSource, row: Row) -> str | None:
    """The one column that a source of preferences reads winners from, if it does."""
    column = _column(source, "winner") if form_of(row, source) == "winner" else None
    return None if column and JOIN in column else column


def read_columns(row: Row, source: DataSource, kind: MappedKind) -> set[str]:
    """The columns of a row that make a rating or a preference, whether the row has them or not."""
    names: dict[str, str] = {name: _column(source, name) for name in ("prompt", "source", "system", "tools")}
    if kind == "ratings":
        names |= {name: _column(source, name) for name in ("response", "scale")}
        names |= attributes(source) or {"ratings": _column(source, "ratings")}
        if not attributes(source) and row.find(names["ratings"]) is None:
            names |= {name: name for name in HELPSTEER_ATTRIBUTES}
    else:
        form = form_of(row, source)
        used = {
            "chosen": ("chosen", "rejected", "strength"),
            "winner": ("response_1", "response_2", "winner"),
            "preference_strength": ("response_1", "response_2", "preference_strength"),
        }[form]
        names |= {name: _column(source, name) for name in used}
        if form == "winner":
            names |= {name: name for name in MODEL_NAMES}
    return {part if part in row.values else part.partition(".")[0] for part in _parts(names.values())}


def _parts(columns: Iterable[str]) -> Iterator[str]:
    for column in columns:
        yield from (part.strip() for part in column.split(JOIN))


def margin_of(row: Row, column: str) -> int:
    """A margin of 0 to 3 as a strength: 0, or rounded to 1, 2 or 3."""
    value = row.number(column, 0, STRONGEST, fix=MARGIN_FIX)
    return strength_of(value) if value else 0


def _renamed(row: Row, source: DataSource) -> Row:
    """The row with its columns for `system` and `tools` under these names."""
    mapped = {name: source.columns[name] for name in ("system", "tools") if name in source.columns}
    if not mapped:
        return row
    return Row(
        row.place, {**row.values, **{name: row.find(column) for name, column in mapped.items()}}, row.noted
    )


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


def _scale_fix(row: Row, column: str) -> str:
    return LABEL_FIX if isinstance(row.find(column), bool) else SCALE_FIX


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
