"""Read local files and folders row by row, each row with its place."""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf.core.errors import DataError, did_you_mean
from rlhf.data.sources.contents import AGAIN, check_contents
from rlhf.data.sources.json_text import parse, rows_of_object
from rlhf.data.sources.tables import csv_rows

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".arrow")
COMPRESSED = (".gz", ".zst")
FILES = "a file ending in .jsonl, .json, .csv, .tsv, .parquet or .arrow (also .gz and .zst)"
READABLE = (
    f"{FILES}, a folder of such files or one that `save_to_disk` wrote, or a pattern such as `data/*.jsonl`"
)
PARQUET_ROWS = 1024
"""Rows of a parquet file that are in memory as Python objects at a time."""


SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.")
"""The number of a part of a file and of all its parts, in the name of the part."""


def file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Each row of a file, with its place: `file:line` for JSON Lines, else `file: row N`.

    Raises:
        DataError: another kind of file, or one that is not whole, cannot be read or cannot be parsed.
    """
    suffix = _suffix(path)
    if path.is_dir():
        names = sorted(file.name for file in path.iterdir() if _suffix(file) in SUFFIXES)
        raise DataError(
            f"{path} is a folder; one file is expected here.",
            allowed=FILES,
            fix=f"name a file in it: {', '.join(names[:8])}" if names else "name a file",
        )
    if suffix not in SUFFIXES:
        raise DataError(
            f"{path} ends in {path.suffix!r}",
            allowed=READABLE,
            fix=f"rename it to {path.with_suffix(path.suffix.lower()).name}"
            if _suffix(path.with_suffix(path.suffix.lower())) in SUFFIXES
            else "write it as JSON Lines: one object a line, in a file that ends in .jsonl",
        )
    check_contents(path)
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
    endings = [suffix + end for suffix in SUFFIXES for end in (*COMPRESSED, "")]
    for stem in (f"{split}/{split}", split) if inner else (split,):
        if files := [folder / (stem + ending) for ending in endings if (folder / (stem + ending)).is_file()]:
            return [_only(files, split)]
    for pattern in (f"{start}{split}-*{ending}" for start in ("", "data/") for ending in endings):
        if shards := sorted(folder.glob(pattern)):
            _check_shards(shards, folder)
            return shards
    readable = sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if _suffix(path) in SUFFIXES
    )
    listing = (
        ", ".join(readable[:8]) + (", ..." if len(readable) > 8 else "") if readable else "no data files"
    )
    raise DataError(
        f"{folder} has no {f'{split}/' if inner else ''}{split}.jsonl.gz; it has: {listing}",
        allowed="SPLIT.jsonl, .json, .csv, .tsv or .parquet (also .gz, .zst), or shards [data/]SPLIT-*",
        fix="set `split` to one of the splits in the folder, `path` to the file itself, or to a pattern of "
        f"several files: {folder}/*.jsonl",
    )


def _only(files: list[Path], split: str) -> Path:
    if len(files) > 1:
        raise DataError(
            f"{files[0].parent} has several files of the split {split!r}: {', '.join(f.name for f in files)}",
            allowed="one file of a split",
            fix=f"set `path` to the file you mean: {files[0]}",
        )
    return files[0]


def _check_shards(shards: list[Path], folder: Path) -> None:
    """Refuse shards `NAME-00000-of-00003.ENDING` of which some are not there."""
    numbers = [match for shard in shards if (match := SHARD.search(shard.name))]
    total = max((int(match[2]) for match in numbers), default=0)
    missing = sorted(set(range(total)) - {int(match[1]) for match in numbers})
    if missing:
        shown = ", ".join(f"{number:05d}-of-{total:05d}" for number in missing[:4])
        raise DataError(
            f"{folder}: {len(missing)} of {total} shards are missing: {shown}",
            allowed="all shards of a split",
            fix=f"download them, or read those that are there by a pattern: path: {shards[0].parent}/*"
            f"{shards[0].suffix}",
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
            except (ValueError, RecursionError):
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
            yield place, parse(line, place, "one JSON object a line", fix)
    if not has_rows:
        raise DataError(f"{path}:1: the file holds no rows", allowed="one JSON object a line", fix=AGAIN)


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a .json file: an array, an object of columns, an object with a list of rows, or one row."""
    text = b"".join(line for _, line in _lines(path))
    if not text.strip():
        raise DataError(f"{path}:1: the file holds no rows", allowed="a JSON array of objects", fix=AGAIN)
    value = parse(text, str(path), "a JSON array of objects, or one object a line", "correct the file")
    rows = value if isinstance(value, list) else rows_of_object(value, path)
    return ((f"{path}: row {number}", row) for number, row in enumerate(rows, start=1))


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
