"""Read a column `winner`: the index, name or letter of the better response.

    index     0 and 1, or 1 and 2; where the columns of the responses end in these numbers (`response_0`), by
    them
    name      of the response's column, of ours (`response_1`), or of the model in `model_a` and `model_b`
    letter    a and b, also as in `model_a`; where the columns end in letters (`human_ref_B`), by them
    tie       `tie`, `both`, `both_bad`, `tie (bothbad)`

`A + B` compares two columns, one of each response: the higher number wins, and equal ones are a tie. A third
column, `A + B + TIE`, marks ties.

SHP's column `labels` is the one exception: 1 says that `human_ref_A` is preferred, 0 that `human_ref_B` is.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from rlhf.core.errors import DataError
from rlhf.data.sources.rows import JOIN, Row, as_number, is_number

TIES = frozenset({"tie", "both", "bothbad", "bothgood", "tiebothbad", "draw", "equal", "neither"})
FIRST = frozenset({"a", "first", "left"})
SECOND = frozenset({"b", "second", "right"})
MODEL_NAMES = ("model_a", "model_b")
"""Columns with the names of the models that wrote the first and the second response."""
SHP = ("labels", frozenset({"human_ref_A", "human_ref_B"}))
ALLOWED = "an index (0 and 1, or 1 and 2), the name of a response's column, a letter (a, b), or `tie`"


def winner_sign(row: Row, column: str, first: str, second: str, first_index: int) -> int:
    """-1 where the first response wins, 1 where the second does, 0 for a tie.

    Args:
        first: the column of the first response.
        second: the column of the second response.
        first_index: what an index calls the first response, see `first_index_of`.

    Raises:
        DataError: the value names neither response.
    """
    if JOIN in column:
        return higher_sign(row, column)
    value = _as_index(row.get(column))
    if isinstance(value, bool):
        raise row.wrong(column, f"{ALLOWED}; a truth value does not say which of the two it is about")
    if (column, frozenset({first, second})) == SHP and value in (0, 1):
        value = "human_ref_A" if value == 1 else "human_ref_B"
    if isinstance(value, int):
        return _of_index(row, column, value, (first, second), first_index)
    if not isinstance(value, str):
        raise row.wrong(column, ALLOWED)
    if re.sub(r"[^a-z]", "", value.lower()) in TIES:
        return 0
    for sign, names in ((-1, (first, "response_1")), (1, (second, "response_2"))):
        if value in names:
            return sign
    models = [row.find(name) for name in MODEL_NAMES]
    if value in models and models[0] != models[1]:
        return 2 * models.index(value) - 1
    end, ends = end_of(value), (end_of(first), end_of(second))
    if end in ends and ends[0] != ends[1]:
        return 2 * ends.index(end) - 1
    if end in FIRST | SECOND:
        return -1 if end in FIRST else 1
    raise row.wrong(column, ALLOWED)


def higher_sign(row: Row, columns: str) -> int:
    """Which of the columns `A + B` or `A + B + TIE` has the higher number: -1 the first, 1 the second.

    0 where both are equal, as they must be where the third column is not 0.

    Raises:
        DataError: a column is missing, holds no number, or says a tie beside a winner.
    """
    names = [name.strip() for name in columns.split(JOIN)]
    numbers = []
    for name in names:
        if (number := as_number(row.get(name))) is None:
            raise row.wrong(name, "a number, or a truth value")
        numbers.append(number)
    first, second, *ties = numbers
    if any(ties) and (len(ties) > 1 or first != second):
        raise row.wrong(names[-1], f"0 where {names[0]!r} or {names[1]!r} is the higher one")
    return (second > first) - (second < first)


def counterpart(column: str, names: Collection[str]) -> str | None:
    """The column that says of the other response what `column`, such as `winner_model_a`, says of one."""
    end = end_of(column)
    for pair in (("a", "b"), ("0", "1"), ("1", "2")):
        if end in pair:
            other = column[: len(column) - 1] + pair[1 - pair.index(end)]
            for name in (other, other[:-1] + other[-1].upper()):
                if name in names and name != column:
                    return name
    return None


def first_index_of(values: Collection[Any], first: str, second: str, *, path: str, column: str) -> int:
    """What an index of a whole column calls the first response: 0 or 1.

    Raises:
        DataError: the indices are of both kinds, or 1 is the only one and the columns have no numbers.
    """
    indices = {value for value in map(_as_index, values) if is_number(value) and value == int(value)}
    if 0 in indices and 2 in indices:
        raise DataError(
            f"{path}: column {column!r} holds 0, 1 and 2",
            allowed="0 and 1, or 1 and 2; a tie is `tie`",
            fix="write `tie` in the place of the number that stands for it",
        )
    if (column, frozenset({first, second})) == SHP or indices != {1}:
        return 1 if 2 in indices else 0
    ends = [end_of(first), end_of(second)]
    if sorted(ends) in (["0", "1"], ["1", "2"]):
        return int(min(ends))
    raise DataError(
        f"{path}: column {column!r} holds only 1, which is the second response counted from 0, and the "
        "first from 1",
        allowed=ALLOWED,
        fix="write the winner by its letter or by the name of its column",
    )


def _of_index(row: Row, column: str, value: int, columns: tuple[str, str], first_index: int) -> int:
    ends = [end_of(side) for side in columns]
    if sorted(ends) == [str(first_index), str(first_index + 1)] and str(value) in ends:
        return 2 * ends.index(str(value)) - 1
    if value - first_index not in (0, 1):
        raise row.wrong(column, ALLOWED)
    return 2 * (value - first_index) - 1


def _as_index(value: Any) -> Any:
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    return int(value) if is_number(value) and value == int(value) else value


def end_of(name: str) -> str:
    """The last word or number of a name: `a` of `model_a`."""
    return re.split(r"[^a-z0-9]+", name.lower().strip())[-1]
