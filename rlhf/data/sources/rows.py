"""Read the rows of any source, and columns of a row."""

from __future__ import annotations

import glob
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from rlhf.core.errors import DataError, did_you_mean, excerpt
from rlhf.data.sources.files import READABLE, file_rows, folder_files, missing_path
from rlhf.data.sources.hub import hub_rows
from rlhf.data.sources.json_text import RepeatedKeys
from rlhf.data.sources.select import drawn, matching, of_split
from rlhf.data.sources.tables import Cell, is_saved, saved_rows

DemoKind = Literal["helpsteer2", "helpsteer2-preference", "helpsteer3-principle", "prompts", "benchmark"]

if TYPE_CHECKING:
    from rlhf.config.schema import DataSource

DEMO = "demo"
CONFIGURATIONS = {
    "helpsteer3": "preference",
    "helpsteer3-feedback": "feedback",
    "helpsteer3-principle": "principle",
}
"""The configuration of nvidia/HelpSteer3, on the Hub and as a folder, that holds the rows of a format."""
PREFERENCE, DISAGREEMENTS = "preference", "disagreements"
CORRECT_ROW = "correct this value in the file, or delete the row"
JOIN = " + "
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
PATTERN = re.compile(r"[*?\[]")
FILE_ENDING = re.compile(r"\.(jsonl?|parquet|gz|csv|tsv|txt|zip|zst|arrow)$")


@dataclass(frozen=True, slots=True)
class Row:
    """One row and its place (`file:line`).

    A column is named as it stands in the row, or by a path into a dictionary column: `ratings.depth` is the
    key `depth` of the column `ratings`; `instruction + input` is both texts, an empty line between them. A
    null is the same as an absent column. `noted` collects remarks on the row while it is read.
    """

    place: str
    values: Mapping[str, Any]
    noted: set[str] = field(default_factory=set, compare=False)

    @property
    def repeats_a_key(self) -> bool:
        """Whether a key occurs twice in the row as it stands in its file."""
        return isinstance(self.values, RepeatedKeys)

    def find(self, column: str) -> Any:
        """The value of a column, or None."""
        return _find(self.values, column)

    def find_number(self, column: str) -> float | None:
        """The value of a column as a finite number, or None where it is none."""
        value = _parsed(self.find(column))
        return float(value) if is_number(value) else None

    def get(self, column: str) -> Any:
        """The value of a column.

        Raises:
            DataError: the row has no such column, or a null in it.
        """
        value = self.find(column)
        if value is None:
            names = [name for name, present in self.values.items() if present is not None]
            null = " It is null in this row." if column in self.values else ""
            raise DataError(
                f"{self.place}: no column {column!r}.{did_you_mean(column, names)}{null}",
                allowed=f"this row has {', '.join(names) or 'no columns'}",
                fix="correct the row, rename the column, or name it under `columns` of a config's source",
            )
        return value

    def wrong(
        self, column: str, allowed: str, fix: str = CORRECT_ROW, value: Any = None, around: Any = None
    ) -> DataError:
        """The error for a column whose value cannot be used.

        Args:
            value: the item of a list that is at fault, where it is not the whole value.
            around: the part of that value that is at fault, which the excerpt is centred on.
        """
        shown = excerpt(self.find(column) if value is None else value, around)
        where = "is" if value is None else "is malformed at"
        return DataError(f"{self.place}: column {column!r} {where} {shown}", allowed=allowed, fix=fix)

    def wrong_item(self, column: str, allowed: str, is_valid: Callable[[Any], bool]) -> DataError:
        """As `wrong`, of a list: names the first item that is not valid, where there is one."""
        values = self.find(column)
        items = values if isinstance(values, list) else []
        faults = (number for number, item in enumerate(items, start=1) if not is_valid(item))
        if (number := next(faults, None)) is None:
            return self.wrong(column, allowed)
        return DataError(
            f"{self.place}: column {column!r}, item {number} of {len(items)}, is "
            f"{excerpt(items[number - 1])}",
            allowed=allowed,
            fix=CORRECT_ROW,
        )

    def text(self, column: str) -> str:
        """A column that must be a string."""
        value = self.get(column)
        if not isinstance(value, str):
            raise self.wrong(column, "a string")
        return value

    def number(self, column: str, low: float, high: float, fix: str = CORRECT_ROW) -> float:
        """A column that must be a number from `low` to `high`."""
        value = _parsed(self.get(column))
        if not is_number(value) or not low <= value <= high:
            raise self.wrong(column, f"a number from {low:g} to {high:g}", fix)
        return float(value)

    def integer(self, column: str, low: int, high: int) -> int:
        """A column that must be a whole number from `low` to `high`."""
        value = _parsed(self.get(column))
        if not is_number(value) or value != int(value) or not low <= value <= high:
            raise self.wrong(column, f"a whole number from {low} to {high}")
        return int(value)


def is_number(value: Any) -> bool:
    """Whether a value is a number that a float can hold, and finite (a truth value is none)."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond 1.8e308
        return False


def as_number(value: Any) -> float | None:
    """A number, a truth value as 0 or 1, or the text of a number; None for anything else."""
    if isinstance(value, str | Decimal):
        try:
            value = float(value)
        except ValueError:
            return None
    return float(value) if isinstance(value, bool) or is_number(value) else None


def read_rows(source: DataSource, *, seed: int) -> Iterator[Row]:
    """The rows of a source, in its order: those that match `where`, at most `limit` of them, drawn by `seed`.

    Raises:
        DataError: no such file, folder or data set; a row that is not an object; `where` matches nothing.
    """
    rows: Iterator[Row] = (_row(place, values) for place, values in _raw_rows(source))
    if source.format == "helpsteer2-preference":
        rows = of_split(rows, source)
    if source.where:
        rows = matching(rows, source)
    if source.limit is not None:
        rows = drawn(rows, source.limit, seed)
    return rows


def synthetic_rows(kind: DemoKind, split: str) -> Iterator[tuple[str, Any]]:
    """The synthetic rows this project makes itself, with their places."""
    from rlhf.data.demo import dataset as demo

    rows = demo.demo_rows(kind, split)
    return ((f"{DEMO} {kind} ({split}): row {number}", row) for number, row in enumerate(rows, start=1))


def looks_local(path: str) -> bool:
    """Whether a path is meant as a file or folder rather than a Hugging Face name."""
    explicit = path.startswith(("/", "./", "../", "~")) or FILE_ENDING.search(path) is not None
    return explicit or HUB_NAME.fullmatch(path) is None or Path(path).exists()


def _raw_rows(source: DataSource) -> Iterator[tuple[str, Any]]:
    split, inner = source.split, _inner_folder(source)
    if source.format == "helpsteer2":
        split = {"val": "validation"}.get(split, split)
    if source.path == DEMO:
        return synthetic_rows(
            cast(DemoKind, "prompts" if source.format == "columns" else source.format), split
        )
    if not looks_local(source.path):
        split = "train" if inner else split  # the Hub puts a folder's only file under this name
        name = source.config_name or CONFIGURATIONS.get(source.format)
        return hub_rows(source.path, split, data_dir=inner, revision=source.revision, config_name=name)
    path = Path(source.path).expanduser()
    if not path.exists() and PATTERN.search(source.path):
        return _chained(_matching_files(str(path)))
    if not path.exists():
        raise missing_path(path)
    if not path.is_dir():
        return file_rows(path)
    configuration = source.config_name or CONFIGURATIONS.get(source.format)
    if configuration is not None and (path / configuration).is_dir():
        path /= configuration
    elif source.config_name is not None:
        raise missing_path(path / source.config_name)
    if is_saved(path):
        return saved_rows(path, split)
    return _chained(folder_files(path, inner or split, inner=inner is not None))


def _chained(files: Iterable[Path]) -> Iterator[tuple[str, Any]]:
    return itertools.chain.from_iterable(file_rows(file) for file in files)


def _matching_files(pattern: str) -> list[Path]:
    names = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - an absolute pattern, too
    files = [Path(name) for name in names if Path(name).is_file()]
    if not files:
        raise DataError(
            f"no file matches {pattern}", allowed=READABLE, fix=f"look at it: ls -d {Path(pattern).parent}/*"
        )
    return files


def _inner_folder(source: DataSource) -> str | None:
    """The folder in which nvidia/HelpSteer2 keeps what does not fit the schema of its ratings."""
    if source.format == "helpsteer2-preference":
        return PREFERENCE
    return DISAGREEMENTS if source.format == "helpsteer2" and source.split == DISAGREEMENTS else None


def _row(place: str, values: Any) -> Row:
    if not isinstance(values, dict):
        raise DataError(f"{place}: a {type(values).__name__}", allowed="an object with named columns")
    return Row(place, values)


def _parsed(value: Any) -> Any:
    """A cell of a CSV file, in which all is text, or a decimal of a Parquet file, as a number."""
    if isinstance(value, Cell | Decimal):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _find(values: Mapping[str, Any], column: str) -> Any:
    if column in values:
        return values[column]
    if JOIN in column:
        texts = [_find(values, name.strip()) for name in column.split(JOIN)]
        return "\n\n".join(text for text in texts if isinstance(text, str) and text.strip()) or None
    head, _, tail = column.partition(".")
    inner = values.get(head)
    return _find(inner, tail) if tail and isinstance(inner, Mapping) else None
