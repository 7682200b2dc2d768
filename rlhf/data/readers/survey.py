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
from rlhf.data.readers.layouts import Kind
from rlhf.data.readers.messages import MEDIA_COLUMNS, SYSTEM_COLUMNS, looks_encoded
from rlhf.data.readers.rows import Row
from rlhf.data.readers.winners import first_index_of

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


def survey(rows: Iterator[Row], source: DataSource, kind: Kind) -> Survey:
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
    if strength is None and winner is None:
        rows = itertools.islice(rows, SAMPLE)
    texts = [source.columns.get(name, name) for name in columns.FIELDS[kind] if name in columns.TEXTS]
    strengths, winners, present = set[str](), set[object](), dict[str, None]()
    encoded, count = Counter[tuple[str, str]](), 0
    for row in rows:
        count += 1
        present.update(dict.fromkeys(name for name, value in row.values.items() if value is not None))
        if strength is not None:
            strengths.add(str(row.find(strength)))
        if winner is not None and isinstance(value := row.find(winner), str | int | float):
            winners.add(value)
        if source.encoding == "text":
            encoded.update((name, encoding) for name in texts if (encoding := looks_encoded(row.find(name))))
    if strengths and {value.removesuffix(".0") for value in strengths} == {"0", "1"}:
        raise _index_as_strength(source, str(strength))
    notes = Counter(
        {
            f"column {name!r} looks like {ENCODINGS[encoding]} and is read as plain text; to read the "
            "turns, set "
            f"`encoding: {encoding}` of this source": number
            for (name, encoding), number in encoded.items()
            if number > count / 2
        }
    )
    if kind != "prompts" and (unread := unread_columns(present, first, source, kind)):
        notes[f"columns that are not read: {', '.join(unread)}"] = 1
    if winner is None:
        return Survey(notes=notes)
    responses = [source.columns.get(name, name) for name in ("response_1", "response_2")]
    return Survey(first_index_of(winners, *responses, path=source.path, column=winner), notes)


def unread_columns(present: Iterable[str], first: Row, source: DataSource, kind: Kind) -> list[str]:
    """The columns of a source of ratings or preferences that nothing is made of.

    The other columns of prompts are all passed to reward functions.

    Args:
        present: columns that have a value in some row.
        first: the first row, which decides between the forms of a preference.
    """
    read = columns.read_columns(first, source, kind) | {*SYSTEM_COLUMNS, *MEDIA_COLUMNS, TOOLS, *source.where}
    return [name for name in present if name not in read]


def _index_as_strength(source: DataSource, column: str) -> DataError:
    return DataError(
        f"{source.path}: column {column!r} holds only 0 and 1: the index of a response or a truth value, "
        "not a strength",
        allowed="strengths from -3 to 3, or from 0 to 3 of chosen over rejected",
        fix=f"where it is the index of the better response, write `winner: {column}` (with `response_1` and "
        "`response_2`); with `chosen` and `rejected` leave `strength` out",
    )
