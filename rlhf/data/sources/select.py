"""Select rows of a source: by split, by `where`, and a random draw of `limit`."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rlhf.core.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from rlhf.config.schema import DataSource
    from rlhf.data.sources.rows import Row

VALUES_SHOWN = 8
VALUES_REMEMBERED = 1000


def of_split(rows: Iterable[Row], source: DataSource) -> Iterator[Row]:
    """The rows of one split: HelpSteer2's preference file has all splits, in a column.

    Rows without that column belong to any split.

    Raises:
        DataError: no row is of that split.
    """
    wanted = {"validation": "val"}.get(source.split, source.split)
    others: set[str] = set()
    matched = False
    for row in rows:
        split = str(row.find("split"))
        if split in ("None", wanted) or {"validation": "val"}.get(split) == wanted:
            matched = True
            yield row
        else:
            others.add(split)
    if others and not matched:
        raise DataError(
            f"{source.path} has no row whose split is {wanted!r}",
            allowed=f"split: {', '.join(sorted(others))}",
        )


def matching(rows: Iterable[Row], source: DataSource) -> Iterator[Row]:
    """The rows whose columns have one of the values that `where` names for them.

    Raises:
        DataError: no row matches; the message lists the columns or values of the rows.
    """
    seen: dict[str, dict[str, None]] = {column: {} for column in source.where}
    matched, names = False, set[str]()
    for row in rows:
        values = {column: row.find(column) for column in source.where}
        if all(value in source.where[column] for column, value in values.items()):
            matched = True
            yield row
        elif not matched:
            names.update(row.values)
            for column, value in values.items():
                if value is not None and len(seen[column]) < VALUES_REMEMBERED:
                    seen[column][str(value)] = None
    if names and not matched:
        raise _nothing_matches(source, seen, names)


def _nothing_matches(source: DataSource, seen: dict[str, dict[str, None]], names: Iterable[str]) -> DataError:
    for column, values in seen.items():
        if not values:
            hint = did_you_mean(column, names)
            return DataError(
                f"where.{column}: no row of {source.path} has the column {column!r}.{hint}",
                allowed=", ".join(sorted(names)),
            )
    hints = "".join(
        did_you_mean(str(wanted), values)
        for column, values in seen.items()
        for wanted in source.where[column]
    )
    shown = "; ".join(
        f"{column}: {', '.join(list(values)[:VALUES_SHOWN])}{', ...' if len(values) > VALUES_SHOWN else ''}"
        for column, values in seen.items()
    )
    return DataError(
        f"no row of {source.path} matches where: {source.where}.{hints}",
        allowed=f"values of these columns: {shown}",
    )


def drawn(rows: Iterable[Row], limit: int, seed: int) -> Iterator[Row]:
    """A uniform draw of `limit` rows in file order, in one pass (reservoir sampling, algorithm R)."""
    chance = random.Random(seed)
    kept: list[tuple[int, Row]] = []
    for index, row in enumerate(rows):
        if index < limit:
            kept.append((index, row))
        elif (slot := chance.randrange(index + 1)) < limit:
            kept[slot] = (index, row)
    return (row for _, row in sorted(kept, key=lambda item: item[0]))
