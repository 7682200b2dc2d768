"""Parse JSON of data files, with an error that names the place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlhf.core.errors import DataError

ROW_LISTS = ("data", "rows", "examples", "instances", "items", "records", "samples")
"""Names of a list of rows in an object that also describes the file."""


class RepeatedKeys(dict[str, Any]):
    """A JSON object in which a key occurs twice, so that it is not clear which value is meant."""


def parse(text: bytes, place: str, allowed: str, fix: str) -> Any:
    """The value of a JSON text in UTF-8; an object with a repeated key makes its row `RepeatedKeys`.

    Raises:
        DataError: not UTF-8, not JSON, nested too deeply, or a number too long to read.
    """
    try:
        return _decode(text.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise DataError(
            f"{place}: not valid JSON ({error.msg}, {where})", allowed=allowed, fix=fix
        ) from error
    except UnicodeDecodeError as error:
        raise not_utf8(place, error) from error
    except RecursionError:
        raise DataError(f"{place}: nested too deeply to be read", allowed=allowed, fix=fix) from None
    except ValueError as error:  # of an integer with thousands of digits
        raise DataError(f"{place}: a number that is too long ({error})", allowed=allowed, fix=fix) from error


def not_utf8(place: str, error: UnicodeDecodeError) -> DataError:
    """The error for text in another encoding."""
    return DataError(
        f"{place}: not UTF-8 ({error.reason}, byte {error.object[error.start]:#04x})",
        allowed="UTF-8 text",
        fix="convert the file: iconv -f ENCODING -t UTF-8 OLD > NEW, where ENCODING is its own, such as "
        "LATIN1 or CP1252",
    )


def rows_of_object(value: Any, path: Path) -> list[Any]:
    """The rows of the object that a JSON file holds: an object of columns, with a list of rows, or one row.

    Raises:
        DataError: anything else.
    """
    allowed = "a JSON array of objects, or one object a line"
    if not isinstance(value, dict) or not value:
        raise DataError(f"{path}: {'an empty object' if value == {} else _kind(value)}", allowed=allowed)
    columns = list(value.values())
    lists = [name for name, column in value.items() if isinstance(column, list)]
    if len(lists) == 1 and lists[0] in ROW_LISTS and _is_rows(value[lists[0]]):
        return list(value[lists[0]])
    if len(columns) > 1 and all(map(_is_rows, columns)) and not any(map(_is_conversation, columns)):
        raise DataError(
            f"{path}: several lists of rows: {', '.join(value)}",
            allowed=allowed,
            fix="write each list to a file of its own",
        )
    if len(columns) > 1 and all(isinstance(c, dict) and not _is_message(c) for c in columns):
        raise DataError(
            f"{path}: an object of objects, under {', '.join(list(value)[:4])}",
            allowed=allowed,
            fix='write one object a row; with pandas: frame.to_json(FILE, orient="records", lines=True)',
        )
    if not all(isinstance(column, list) for column in columns) or any(map(_is_conversation, columns)):
        return [value]
    if len(columns) == 1 and _is_rows(columns[0]):
        return list(columns[0])
    lengths = {name: len(column) for name, column in value.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(
            f"{path}: the columns have different lengths "
            f"({', '.join(f'{n} {k}' for k, n in lengths.items())})",
            allowed="an object of lists, one a column and all of one length",
            fix="correct the file, or write one object a row",
        )
    return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _kind(value: Any) -> str:
    """The kind of a JSON value, in JSON's terms."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def _is_rows(value: Any) -> bool:
    """Whether a value is a list of objects that are not messages."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and ("role" in value or "from" in value)


def _is_conversation(column: Any) -> bool:
    return bool(column) and all(map(_is_message, column))


def _decode(text: str) -> Any:
    """The value of a JSON text; an object with a repeated key, at any depth, makes its row `RepeatedKeys`."""
    repeated = False

    def make(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal repeated
        made = dict(pairs)
        if len(made) == len(pairs):
            return made
        repeated = True
        return RepeatedKeys(made)

    value = json.loads(text, object_pairs_hook=make)
    if repeated and isinstance(value, list):
        return [_marked(row) for row in value]
    return _marked(value) if repeated else value


def _marked(row: Any) -> Any:
    return RepeatedKeys(row) if isinstance(row, dict) and _repeats(row) else row


def _repeats(value: Any) -> bool:
    if isinstance(value, dict):
        return isinstance(value, RepeatedKeys) or any(map(_repeats, value.values()))
    return isinstance(value, list) and any(map(_repeats, value))
