"""Local files and folders, read row by row; every row carries the place it came from."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf.core.errors import DataError, did_you_mean

SUFFIXES = (".jsonl", ".json", ".parquet")
READABLE = "a file ending in .jsonl, .json or .parquet (also .gz), or a folder of such files"
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
    if suffix == ".parquet":
        return _parquet_rows(path)
    if suffix == ".json" and _starts_with_bracket(path):
        return _array_rows(path)
    return _line_rows(path)


def folder_files(folder: Path, split: str, *, inner: bool = False) -> list[Path]:
    """The files of one split: `SPLIT.jsonl.gz` and its like, or parquet shards `[data/]SPLIT-*.parquet`.

    Args:
        inner: look into a folder of the same name first, as in `preference/preference.jsonl.gz`.

    Raises:
        DataError: the folder has no such file; the message lists what it has.
    """
    for stem in (f"{split}/{split}", split) if inner else (split,):
        for name in (stem + suffix + end for suffix in SUFFIXES for end in (".gz", "")):
            if (folder / name).is_file():
                return [folder / name]
    for pattern in (f"{split}-*.parquet", f"data/{split}-*.parquet"):
        if shards := sorted(folder.glob(pattern)):
            return shards
    readable = sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if _suffix(path) in SUFFIXES
    )
    found = ", ".join(readable[:8]) + (", ..." if len(readable) > 8 else "") if readable else "no data files"
    raise DataError(
        f"{folder} has no {f'{split}/' if inner else ''}{split}.jsonl.gz; it has: {found}",
        allowed="SPLIT.jsonl, .json or .parquet (also .gz), or [data/]SPLIT-*.parquet",
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
    return Path(path.name.removesuffix(".gz")).suffix


def _open(path: Path) -> io.BufferedIOBase:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


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


def _starts_with_bracket(path: Path) -> bool:
    for _, line in _lines(path):
        if text := line.removeprefix(b"\xef\xbb\xbf").strip():
            return text.startswith(b"[")
    return False


def _line_rows(path: Path) -> Iterator[tuple[str, Any]]:
    found = False
    for number, line in _lines(path):
        if line.strip():
            found = True
            place = f"{path}:{number}"
            # A last line without its end may have been cut off.
            fix = "mend or delete this line" if line.endswith(b"\n") else f"mend this line; or {AGAIN}"
            yield place, _parse(line, place, "one JSON object a line", fix)
    if not found:
        raise DataError(f"{path}:1: the file holds no rows", allowed="one JSON object a line", fix=AGAIN)


def _array_rows(path: Path) -> Iterator[tuple[str, Any]]:
    text = b"".join(line for _, line in _lines(path))
    rows = _parse(text, str(path), "a JSON array of objects, or one object a line", "mend the file")
    return ((f"{path}: row {number}", row) for number, row in enumerate(rows, start=1))


def _parse(text: bytes, place: str, allowed: str, fix: str) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise DataError(
            f"{place}: not valid JSON ({error.msg}, {where})", allowed=allowed, fix=fix
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8 ({error.reason})", allowed="UTF-8 text", fix=fix) from error


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with _open(path) as stream:
            table = pq.ParquetFile(pa.BufferReader(stream.read()) if path.suffix == ".gz" else stream)
            for batch in table.iter_batches(batch_size=PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", row
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise _unreadable(f"{path}: row {number + 1}", error) from error
