"""Read local files and folders row by row, each row with its place."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf.core.errors import DataError, did_you_mean
from rlhf.data.readers.tables import csv_rows

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".arrow")
COMPRESSED = (".gz", ".zst")
READABLE = (
    "a file ending in .jsonl, .json, .csv, .tsv, .parquet or .arrow (also .gz and .zst), a folder of such "
    "files or one "
    "that `save_to_disk` wrote, or a pattern such as `data/*.jsonl`"
)
LFS_POINTER = b"version https://git-lfs.github.com/"
"""What stands in the place of a file that git cloned and git-LFS did not fetch."""
PARQUET_ROWS = 1024
"""Rows of a parquet file that are in memory as Python objects at a time."""
AGAIN = "download or copy the file again: it is not whole"


def file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Each row of a file, with its place: `file:line` for JSON Lines, else `file: row N`.

    Raises:
        DataError: another kind of file, or one that is not whole, cannot be read or cannot be parsed.
    """
    suffix = _suffix(path)
    if suffix not in SUFFIXES:
        raise DataError(f"{path} ends in {path.suffix!r}", allowed=READABLE)
    _require_fetched(path)
    if suffix in (".csv", ".tsv"):
        return csv_rows(path, _open, delimiter="," if suffix == ".csv" else "\t")
    if suffix in (".parquet", ".arrow"):
        return _table_rows(path, suffix)
    if not _is_lines(path, alone=suffix == ".jsonl"):
        return _json_rows(path)
    return _line_rows(path)


def folder_files(folder: Path, split: str, *, inner: bool = False) -> list[Path]:
    """The files of one split: `SPLIT.jsonl.gz` and its like, or parquet shards `[data/]SPLIT-*.parquet`.

    Args:
        inner: look into a folder of the same name first, as in `preference/preference.jsonl.gz`.

    Raises:
        DataError: the folder has no such file; the message lists what it has.
    """
    for stem in (f"{split}/{split}", split) if inner else (split,):
        for name in (stem + suffix + end for suffix in SUFFIXES for end in (*COMPRESSED, "")):
            if (folder / name).is_file():
                return [folder / name]
    for pattern in (f"{split}-*.parquet", f"data/{split}-*.parquet", f"{split}-*.arrow"):
        if shards := sorted(folder.glob(pattern)):
            return shards
    readable = sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if _suffix(path) in SUFFIXES
    )
    listing = (
        ", ".join(readable[:8]) + (", ..." if len(readable) > 8 else "") if readable else "no data files"
    )
    raise DataError(
        f"{folder} has no {f'{split}/' if inner else ''}{split}.jsonl.gz; it has: {listing}",
        allowed="SPLIT.jsonl, .json, .csv, .tsv or .parquet (also .gz, .zst), or [data/]SPLIT-*.parquet",
        fix="set `split` to one of the splits in the folder, or `path` to the file itself",
    )


def missing_path(path: Path) -> DataError:
    """The error for a local path that does not exist, with the closest name that does."""
    step = path
    while not step.parent.exists():
        step = step.parent
    names = [entry.name for entry in step.parent.iterdir()] if step.parent.is_dir() else []
    return DataError(
        f"{path} does not exist: {step.parent} has no {step.name!r}.{did_you_mean(step.name, names)}",
        allowed=f"`demo`, {READABLE}, or a Hugging Face name",
    )


def _suffix(path: Path) -> str:
    name = path.name
    for end in COMPRESSED:
        name = name.removesuffix(end)
    return Path(name).suffix


def _open(path: Path) -> io.BufferedIOBase:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".zst":
        import pyarrow as pa

        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def _require_fetched(path: Path) -> None:
    """Refuse what a broken download leaves in the place of the data."""
    with path.open("rb") as stream:
        head = stream.read(len(LFS_POINTER))
    if not head:
        raise DataError(f"{path}:1: the file is empty", fix=AGAIN)
    if head == LFS_POINTER:
        raise DataError(
            f"{path}:1: a pointer of git-LFS, not the data it stands for",
            fix="run `git lfs pull` in the folder it was cloned to, or download the file by other means",
        )


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file, counted from 1; a file that breaks off is an error of the data."""
    number = 0
    try:
        with _open(path) as stream:
            for line in stream:
                number += 1
                yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(f"{path}:{number + 1}", error) from error


def _unreadable(place: str, error: Exception) -> DataError:
    return DataError(f"{place}: cannot be read from here on ({error})", fix=AGAIN)


def _is_lines(path: Path, *, alone: bool) -> bool:
    """Whether a file holds one object per line: its first line is a complete object.

    Args:
        alone: what a file of one such line is: one row, or (false) a JSON text that may be an object of
            columns.
    """
    complete, count = False, 0
    for _, line in _lines(path):
        if text := line.removeprefix(b"\xef\xbb\xbf").strip():
            count += 1
            if count == 2:
                return complete
            if text.startswith(b"["):
                return False
            try:
                complete = isinstance(json.loads(text), dict)
            except ValueError:
                return text != b"{"
            if alone:
                return True
    return alone


def _line_rows(path: Path) -> Iterator[tuple[str, Any]]:
    has_rows = False
    for number, line in _lines(path):
        if line.strip():
            has_rows = True
            place = f"{path}:{number}"
            # A last line without its end may have been cut off.
            fix = "correct or delete this line" if line.endswith(b"\n") else f"correct this line; or {AGAIN}"
            yield place, _parse(line, place, "one JSON object a line", fix)
    if not has_rows:
        raise DataError(f"{path}:1: the file holds no rows", allowed="one JSON object a line", fix=AGAIN)


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a .json file: an array, an object of columns, an object with a list of rows, or one row."""
    text = b"".join(line for _, line in _lines(path))
    if not text.strip():
        raise DataError(f"{path}:1: the file holds no rows", allowed="a JSON array of objects", fix=AGAIN)
    value = _parse(text, str(path), "a JSON array of objects, or one object a line", "correct the file")
    rows = value if isinstance(value, list) else _rows_of_object(value, path)
    return ((f"{path}: row {number}", row) for number, row in enumerate(rows, start=1))


def _rows_of_object(value: Any, path: Path) -> list[Any]:
    if not isinstance(value, dict) or not value:
        raise DataError(
            f"{path}: a {type(value).__name__}", allowed="a JSON array of objects, or one object a line"
        )
    columns = list(value.values())
    if not all(isinstance(column, list) for column in columns) or any(map(_is_conversation, columns)):
        return [value]
    if len(columns) == 1 and all(isinstance(item, dict) for item in columns[0]):
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


def _is_conversation(column: list[Any]) -> bool:
    return bool(column) and all(
        isinstance(item, dict) and ("role" in item or "from" in item) for item in column
    )


class RepeatedKeys(dict[str, Any]):
    """A JSON object in which a key occurs twice, so that it is not clear which value is meant."""


def _parse(text: bytes, place: str, allowed: str, fix: str) -> Any:
    try:
        return _decode(text.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise DataError(
            f"{place}: not valid JSON ({error.msg}, {where})", allowed=allowed, fix=fix
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8 ({error.reason})", allowed="UTF-8 text", fix=fix) from error


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


def _table_rows(path: Path, suffix: str) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa

    number = 0
    try:
        with _open(path) as stream:
            source = pa.BufferReader(stream.read()) if path.suffix in COMPRESSED else stream
            for batch in _parquet(source) if suffix == ".parquet" else _arrow(source):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", row
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise _unreadable(f"{path}: row {number + 1}", error) from error


def _parquet(source: Any) -> Iterator[Any]:
    import pyarrow.parquet as pq

    yield from pq.ParquetFile(source).iter_batches(batch_size=PARQUET_ROWS)


def _arrow(source: Any) -> Iterator[Any]:
    """Record batches of an Arrow file, or of a stream, which `datasets` writes."""
    import pyarrow as pa

    try:
        batches: Any = pa.ipc.open_stream(source)
    except pa.ArrowInvalid:
        source.seek(0)
        file = pa.ipc.open_file(source)
        batches = (file.get_batch(index) for index in range(file.num_record_batches))
    for batch in batches:
        for start in range(0, batch.num_rows, PARQUET_ROWS):
            yield batch.slice(start, PARQUET_ROWS)
