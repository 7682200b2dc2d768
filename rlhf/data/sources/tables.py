"""Read tables: CSV and TSV files, and folders of `Dataset.save_to_disk`."""

from __future__ import annotations

import csv
import io
import shlex
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rlhf.core.errors import DataError, did_you_mean
from rlhf.data.sources.json_text import not_utf8

LONGEST_CELL = 2**31 - 1


class Cell(str):
    """Text of a CSV file, which has no numbers: a column that must be one is parsed."""

    __slots__ = ()


def csv_rows(path: Path, open_file: Callable[[Path], Any], *, delimiter: str) -> Iterator[tuple[str, Any]]:
    """The rows of a CSV or TSV file with a header, each with the line it ends on; an empty cell is a null.

    Raises:
        DataError: no rows, a row with another number of cells than the header, or bytes that are no UTF-8.
    """
    csv.field_size_limit(LONGEST_CELL)
    number = 0
    try:
        with open_file(path) as stream:
            reader = csv.reader(
                io.TextIOWrapper(stream, "utf-8-sig", newline=""), delimiter=delimiter, strict=True
            )
            names = next(reader, [])
            _check_delimiter(path, names, delimiter)
            if len(set(names)) != len(names):
                raise DataError(
                    f"{path}:1: a column occurs twice in the header: {', '.join(names)}",
                    fix=f"rename one of the columns {next(n for n in names if names.count(n) > 1)!r}",
                )
            for cells in reader:
                if not cells:
                    continue
                number += 1
                place = f"{path}:{reader.line_num}"
                if len(cells) != len(names):
                    raise DataError(
                        f"{place}: {len(cells)} cells, the header has {len(names)}",
                        allowed="one cell a column; text with a delimiter or a line break in double quotes",
                        fix="correct this row",
                    )
                yield (
                    place,
                    {name: Cell(cell) if cell else None for name, cell in zip(names, cells, strict=True)},
                )
    except UnicodeDecodeError as error:
        raise not_utf8(f"{path}: row {number + 1}", error) from error
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise DataError(
            f"{path}: row {number + 1}: cannot be read from here on ({error})",
            allowed="rows of cells; a double quote within quoted text is doubled",
            fix="correct this row, or download or copy the file again",
        ) from error
    if not number:
        raise DataError(f"{path}: a header and no rows", allowed="at least one row")


def _check_delimiter(path: Path, names: list[str], delimiter: str) -> None:
    """Refuse a header of one name that has another delimiter in it."""
    others = {",": "a comma", "\t": "a tab", ";": "a semicolon", "|": "a bar"}
    other = next(
        (mark for mark in others if mark != delimiter and len(names) == 1 and mark in names[0]), None
    )
    if other is not None:
        is_read = {",": ".csv", "\t": ".tsv"}.get(other)
        raise DataError(
            f"{path}:1: the header is one column with {others[other]} in its name: {names[0]}",
            allowed="cells separated by commas in .csv, by tabs in .tsv",
            fix=shlex.join(["mv", str(path), str(path.with_suffix(is_read))])
            if is_read
            else "save the table with commas",
        )


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` of a data set, or of a dictionary of splits, wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def saved_rows(folder: Path, split: str) -> Iterator[tuple[str, Any]]:
    """The rows of a folder that `save_to_disk` wrote; a data set without splits is any split.

    Raises:
        DataError: there is no such split, or the folder is not whole.
    """
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{folder}: not a whole data set ({error})", allowed="a folder that `save_to_disk` wrote"
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise DataError(
                f"{folder} has no split {split!r}.{did_you_mean(split, loaded)}",
                allowed=", ".join(loaded),
                fix="set `split` to one of them",
            )
        loaded = loaded[split]
    return ((f"{folder}: row {number}", dict(row)) for number, row in enumerate(loaded, start=1))
