"""Data that was downloaded by half: one message with file and line, never rows that are quietly fewer."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import pytest

from rlhf.core.errors import DataError
from rlhf.data.sources.files import file_rows

ROWS = [{"prompt": f"question {number}", "noise": str(hash((number, "x")) % 10**9)} for number in range(2000)]
TEXT = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:a5cd48600fb7a330cf0ccc8f59051e24e8f236907c379f42eff1ba18da55204b\nsize 15339272\n"
)
AGAIN = "download or copy the file again"


def refused(path: Path, content: bytes) -> tuple[int, DataError]:
    """How many rows a file gave before it was refused, and the error."""
    path.write_bytes(content)
    rows: list[object] = []
    with pytest.raises(DataError) as caught:
        rows.extend(file_rows(path))
    assert caught.value.exit_code == 2
    return len(rows), caught.value


def test_a_compressed_file_that_breaks_off_names_the_line_it_got_to(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl.gz"
    whole = gzip.compress(TEXT)
    read, error = refused(path, whole[: len(whole) // 2])
    assert 0 < read < len(ROWS)
    assert error.found.startswith(f"{path}:{read + 1}: ") and "Compressed file ended" in error.found
    assert AGAIN in error.fix


def test_the_last_bytes_of_a_compressed_file_count_too(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl.gz"
    read, error = refused(path, gzip.compress(TEXT)[:-8])  # all of the data, without its check sum
    assert read == len(ROWS)
    assert error.found.startswith(f"{path}:{read + 1}: ")


def test_a_compressed_file_with_a_wrong_byte(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(TEXT))
    whole[-6] ^= 255  # in the check sum
    _, error = refused(tmp_path / "train.jsonl.gz", bytes(whole))
    assert "CRC check failed" in error.found


def test_a_last_line_that_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    lines = TEXT.splitlines(keepends=True)
    read, error = refused(path, b"".join(lines[:7]) + lines[7][:20])
    assert read == 7
    assert error.found.startswith(f"{path}:8: ")
    assert AGAIN in error.fix
    # The same line with an end is a mistake in the data, not in the download.
    _, error = refused(path, b"".join(lines[:7]) + lines[7][:20] + b"\n" + lines[8])
    assert (error.found.startswith(f"{path}:8: "), AGAIN in error.fix) == (True, False)


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz", "train.json", "train.parquet"])
def test_a_pointer_of_git_lfs_in_the_place_of_the_data(tmp_path: Path, name: str) -> None:
    read, error = refused(tmp_path / name, POINTER)
    assert read == 0
    assert error.found.startswith(f"{tmp_path / name}:1: ")
    assert "git lfs pull" in error.fix


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz", "train.json", "train.parquet"])
def test_an_empty_file(tmp_path: Path, name: str) -> None:
    _, error = refused(tmp_path / name, b"")
    assert error.found.startswith(f"{tmp_path / name}:1: ")
    assert AGAIN in error.fix


@pytest.mark.parametrize(
    ("name", "content"), [("train.jsonl.gz", gzip.compress(b"", mtime=0)), ("train.jsonl", b"\n \n")]
)
def test_a_file_without_rows(tmp_path: Path, name: str, content: bytes) -> None:
    _, error = refused(tmp_path / name, content)
    assert str(error).startswith(f"{tmp_path / name}:1: the file holds no rows")


def test_a_page_of_a_website_in_the_place_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    _, error = refused(path, b"<!DOCTYPE html>\n<html>\n")
    assert str(error).startswith(f"{path}:1: not valid JSON")


def test_a_parquet_file_that_breaks_off(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "train.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    read, error = refused(path, path.read_bytes()[:-100])
    assert read == 0
    assert error.found.startswith(f"{path}: row 1: ")


def test_rows_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(TEXT + b"not a row\n")
    assert [row for _, row in itertools.islice(file_rows(path), len(ROWS))] == ROWS
