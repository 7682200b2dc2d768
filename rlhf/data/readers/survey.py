"""What only a whole column can say: indices from 0 or from 1, a strength that is none, conversations that are encoded."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rlhf.core.errors import DataError
from rlhf.data.readers import columns
from rlhf.data.readers.layouts import Kind
from rlhf.data.readers.messages import looks_encoded
from rlhf.data.readers.rows import Row
from rlhf.data.readers.winners import first_index_of

if TYPE_CHECKING:
    from rlhf.config.schema import DataSource

SAMPLE = 1000
"""Rows that are looked at where no column of labels has to be read whole."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What a source's columns say.

    Attributes:
        first_index: what an index in the column of winners calls the first response; None without such a column.
        notes: with the number of rows each is about.
    """

    first_index: int | None = None
    notes: Counter[str] = field(default_factory=Counter)


def survey(rows: Iterator[Row], source: DataSource, kind: Kind) -> Survey:
    """Look over a source of format `columns` before its rows are read.

    Raises:
        DataError: a column of strengths holds an index, or one of winners indices of two kinds.
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
    strengths, winners, encoded, count = set[object](), set[object](), Counter[tuple[str, str]](), 0
    for row in rows:
        count += 1
        if strength is not None:
            strengths.add(str(row.find(strength)))
        if winner is not None and isinstance(value := row.find(winner), str | int | float):
            winners.add(value)
        if source.encoding == "text":
            encoded.update((name, kind_) for name in texts if (kind_ := looks_encoded(row.find(name))))
    if strengths and {value.removesuffix(".0") for value in map(str, strengths)} == {"0", "1"}:
        raise _an_index(source, str(strength))
    notes = Counter(
        {
            f"column {name!r} looks like {ENCODINGS[encoding]} and is read as plain text; to read the turns, set "
            f"`encoding: {encoding}` of this source": number
            for (name, encoding), number in encoded.items()
            if number > count / 2
        }
    )
    if winner is None:
        return Survey(notes=notes)
    sides = [source.columns.get(name, name) for name in ("response_1", "response_2")]
    return Survey(first_index_of(winners, *sides, path=source.path, column=winner), notes)


ENCODINGS = {
    "json": "conversations as JSON lists of messages",
    "transcript": "conversations with turns of `Human:` and `Assistant:`",
}


def _an_index(source: DataSource, column: str) -> DataError:
    return DataError(
        f"{source.path}: column {column!r} holds only 0 and 1, which is the index of a response or a yes and no, and no strength",
        allowed="strengths from -3 to 3, or from 0 to 3 of chosen over rejected",
        fix=f"where it says which response is better, write `winner: {column}` (with `response_1` and `response_2`); with "
        "`chosen` and `rejected` leave `strength` out",
    )
