"""Facts of a whole source: how winners are numbered, unread columns, encoded conversations."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rlhf.core.errors import DataError
from rlhf.core.records import TOOLS
from rlhf.data.readers import columns
from rlhf.data.readers.encodings import looks_encoded, looks_rendered
from rlhf.data.readers.layouts import MappedKind
from rlhf.data.readers.messages import MEDIA_COLUMNS, SYSTEM_COLUMNS
from rlhf.data.readers.winners import counterpart, end_of, first_index_of
from rlhf.data.sources.rows import JOIN, Row, as_number

if TYPE_CHECKING:
    from rlhf.config.schema import DataSource

SAMPLE = 1000
"""Rows that are read where no column of strengths or winners must be read whole."""
ENCODINGS = {
    "json": "conversations as JSON lists of messages",
    "transcript": "conversations with turns of `Human:` and `Assistant:`",
}


@dataclass(frozen=True, slots=True)
class Survey:
    """Facts of a source's columns.

    Attributes:
        first_index: the index of the first response in the column of winners; None without such a column.
        notes: remarks for the drop report, with the number of rows each is about.
    """

    first_index: int | None = None
    notes: Counter[str] = field(default_factory=Counter)


def survey(rows: Iterator[Row], source: DataSource, kind: MappedKind) -> Survey:
    """Read the columns of a source of format `columns` before its records are made.

    Raises:
        DataError: a column of strengths holds an index, or a column of winners mixes two kinds of index.
    """
    first = next(rows, None)
    if first is None:
        return Survey()
    rows = itertools.chain([first], rows)
    strength, winner = None, None
    if kind == "preferences":
        strength = columns.strength_column(source, first)
        winner = columns.winner_column(source, first)
    pairs = kind == "preferences" and columns.form_of(first, source) == "chosen"
    other = None if winner is None else counterpart(winner, first.values.keys())
    if strength is None and winner is None:
        rows = itertools.islice(rows, SAMPLE)
    texts = [source.columns.get(name, name) for name in columns.FIELDS[kind] if name in columns.TEXTS]
    strengths, winners, present = set[float](), set[object](), dict[str, None]()
    encoded, rendered, named, count = Counter[tuple[str, str]](), Counter[str](), 0, 0
    exclusive = other is not None
    for row in rows:
        count += 1
        present.update(dict.fromkeys(name for name, value in row.values.items() if value is not None))
        if strength is not None and (size := row.find_number(strength)) is not None:
            strengths.add(size)
        if winner is not None and isinstance(value := row.find(winner), str | int | float):
            winners.add(value)
        if exclusive:
            exclusive = {as_number(row.find(str(name))) for name in (winner, other)} in ({0, 1}, {0})
        if source.encoding == "text":
            encoded.update((name, encoding) for name in texts if (encoding := looks_encoded(row.find(name))))
        rendered.update(name for name in texts if looks_rendered(row.find(name)))
        named += pairs and _names_columns(row, source)
    if exclusive:
        raise _half_of_a_winner(source, str(winner), str(other))
    if strength is not None:
        _check_strengths(strengths, source, strength, signed=not pairs)
    if named == count:
        raise _names_as_texts(source)
    notes = _of_texts(encoded, rendered, count)
    if strengths and max(strengths) <= 1 and any(0 < size < 1 for size in strengths):
        notes[
            f"column {strength!r} is at most 1, so that every strength is 1; scale it, if it should count"
        ] = 1
    if kind != "prompts" and (unread := unread_columns(present, first, source, kind)):
        notes[f"columns that are not read: {', '.join(name or repr(name) for name in unread)}"] = 1
    if winner is None:
        return Survey(notes=notes)
    responses = [source.columns.get(name, name) for name in ("response_1", "response_2")]
    return Survey(first_index_of(winners, *responses, path=source.path, column=winner), notes)


def _of_texts(encoded: Counter[tuple[str, str]], rendered: Counter[str], rows: int) -> Counter[str]:
    """Notes on columns of text that hold whole conversations in more than half of the rows."""
    notes = Counter[str]()
    for (name, encoding), number in encoded.items():
        if number > rows / 2:
            kind = f"column {name!r} looks like {ENCODINGS[encoding]} and is read as plain text"
            notes[f"{kind}; to read the turns, set `encoding: {encoding}` of this source"] = number
    for name, number in rendered.items():
        if number > rows / 2:
            kind = f"column {name!r} looks like text that a chat template has rendered"
            notes[f"{kind} and is read as plain text; write its turns as messages"] = number
    return notes


def unread_columns(present: Iterable[str], first: Row, source: DataSource, kind: MappedKind) -> list[str]:
    """The columns of a source of ratings or preferences that nothing is made of.

    The other columns of prompts are all passed to reward functions.

    Args:
        present: columns that have a value in some row.
        first: the first row, which decides between the forms of a preference.
    """
    read = columns.read_columns(first, source, kind) | {*SYSTEM_COLUMNS, *MEDIA_COLUMNS, TOOLS, *source.where}
    return [name for name in present if name not in read]


def _check_strengths(strengths: set[float], source: DataSource, column: str, *, signed: bool) -> None:
    """Refuse a column of strengths that holds the index of a response, counted from 0 or from 1."""
    if strengths == {0, 1}:
        raise DataError(
            f"{source.path}: column {column!r} holds only 0 and 1: the index of a response or a truth value, "
            "not a strength",
            allowed="strengths from -3 to 3, or from 0 to 3 of chosen over rejected",
            fix=f"where it is the index of the better response, write `winner: {column}` (with `response_1` "
            "and `response_2`) or rename it to `winner`; with `chosen` and `rejected` leave `strength` out",
        )
    if signed and {1, 2} <= strengths <= {0, 1, 2}:
        raise DataError(
            f"{source.path}: column {column!r} holds only {', '.join(f'{n:g}' for n in sorted(strengths))}: "
            "the number of a response, or strengths of which none prefers the first response",
            allowed="strengths from -3 to 3 of which some are negative",
            fix=f"where it is the number of the better response, write `winner: {column}` or rename it to "
            "`winner`; where the second response is always the better one, write `chosen`, `rejected` and "
            f"`strength: {column}`",
        )


def _half_of_a_winner(source: DataSource, column: str, other: str) -> DataError:
    return DataError(
        f"{source.path}: column {column!r} is 1 where its response is the better one, as {other!r} is of the "
        "other response: neither is an index",
        allowed="both columns as `winner`, of which the higher one wins",
        fix=f"winner: {column}{JOIN}{other} (with a third column that marks ties, if there is one)",
    )


def _names_columns(row: Row, source: DataSource) -> bool:
    """Whether both `chosen` and `rejected` hold the name or the letter of another column."""
    sides = [source.columns.get(name, name) for name in ("chosen", "rejected")]
    others = {name.lower() for name in row.values if name not in sides}
    ends = {end for name in others if (end := end_of(name)) in ("a", "b", "0", "1", "2")}
    values = [row.find(side) for side in sides]
    return all(isinstance(value, str) and value.strip().lower() in others | ends for value in values)


def _names_as_texts(source: DataSource) -> DataError:
    column = source.columns.get("chosen", "chosen")
    return DataError(
        f"{source.path}: column {column!r} holds names of other columns, not responses",
        allowed="the texts of the responses, or the name of the better one as `winner`",
        fix=f"columns: {{prompt: COLUMN, response_1: COLUMN, response_2: COLUMN, winner: {column}}}",
    )
