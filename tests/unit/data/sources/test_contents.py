"""Files whose content is another than their name says: refused with a command that helps, which is tried."""

from __future__ import annotations

import gzip
import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf.config.schema import DataSource
from rlhf.core.errors import DataError
from rlhf.data.sources.rows import read_rows

ROWS = [{"prompt": "Name a colour.", "chosen": "Blü.", "rejected": "Seven."}]
TEXT = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)
    return sink.getvalue().to_pybytes()


def zstd() -> bytes:
    return pa.Codec("zstd").compress(TEXT.encode(), asbytes=True)


def read(path: Path | str, **options: Any) -> list[dict[str, Any]]:
    return [dict(row.values) for row in read_rows(DataSource(path=str(path), **options), seed=0)]


def refused(path: Path | str, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read(path, **options)
    assert caught.value.exit_code == 2
    return caught.value


@pytest.mark.parametrize(
    ("name", "content", "better"),
    [
        ("rows.jsonl", gzip.compress(TEXT.encode(), mtime=0), "rows.jsonl.gz"),
        ("rows.jsonl.zst", gzip.compress(TEXT.encode(), mtime=0), "rows.jsonl.gz"),
        ("rows.jsonl", zstd(), "rows.jsonl.zst"),
        ("rows.json", parquet(), "rows.parquet"),
        ("rows.csv", b"prompt\tchosen\trejected\nName a colour.\tBl\xc3\xbc.\tSeven.\n", "rows.tsv"),
    ],
)
def test_the_fix_renames_a_file_after_its_content(
    tmp_path: Path, name: str, content: bytes, better: str
) -> None:
    (tmp_path / name).write_bytes(content)
    error = refused(tmp_path / name)
    subprocess.run(shlex.split(error.fix), check=True)
    assert read(tmp_path / better) == ROWS


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_the_fix_converts_utf_16(tmp_path: Path, encoding: str, name: str) -> None:
    text = TEXT if name == "rows.jsonl" else "prompt,chosen,rejected\nName a colour.,Blü.,Seven.\n"
    (tmp_path / name).write_bytes(text.encode(encoding))
    error = refused(tmp_path / name)
    better = tmp_path / f"better-{name}"
    command = error.fix.partition(": ")[2].replace("NEW", str(better))
    subprocess.run(command, shell=True, check=True)
    assert read(better) == ROWS


def test_another_encoding_names_the_byte_and_a_command(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(TEXT.encode("latin1"))
    error = refused(path)
    assert f"{path}:1" in error.found and "0xfc" in error.found
    assert "iconv -f" in error.fix


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.jsonl.zst", "rows.parquet"])
def test_plain_text_under_a_binary_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(TEXT)
    assert str(tmp_path / name) in refused(tmp_path / name).found


@pytest.mark.parametrize("value", ["1" * 5000, "[" * 100_000 + "]" * 100_000])
def test_json_that_python_cannot_hold(tmp_path: Path, value: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "q", "chosen": "a", "rejected": "b", "x": ' + value + "}\n")
    assert refused(path).found.startswith(f"{path}:1: ")


def test_rows_in_an_object_that_describes_the_file(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps({"version": "1.0", "data": ROWS}))
    assert read(tmp_path / "rows.json") == ROWS


@pytest.mark.parametrize(
    ("value", "result"),
    [
        ({"train": ROWS, "test": ROWS}, "train, test"),
        ({"prompt": {"0": "q"}, "chosen": {"0": "a"}}, "prompt, chosen"),
        ({"id-1": ROWS[0], "id-2": ROWS[0]}, "id-1, id-2"),
        ({}, ""),
        (None, "null"),
    ],
)
def test_a_json_file_of_another_shape(tmp_path: Path, value: Any, result: str) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(value))
    error = refused(tmp_path / "rows.json")
    assert error.found.startswith(f"{tmp_path / 'rows.json'}: ") and result in error.found


def test_a_semicolon_in_a_header_of_one_column(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt;chosen;rejected\nq;a;b\n")
    assert "a semicolon" in refused(tmp_path / "rows.csv").found


def test_a_column_that_occurs_twice_in_a_header(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt,chosen,rejected,chosen\nq,a,b,c\n")
    error = refused(tmp_path / "rows.csv")
    assert error.found.endswith("prompt, chosen, rejected, chosen") and "'chosen'" in error.fix


def test_shards_of_a_folder_are_all_read_or_the_missing_are_named(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"train-{number:05d}-of-00002.jsonl").write_text(TEXT)
    assert read(tmp_path) == ROWS * 2
    (tmp_path / "train-00000-of-00002.jsonl").unlink()
    error = refused(tmp_path)
    assert "00000-of-00002" in error.found
    pattern = error.fix.partition("path: ")[2]
    assert read(pattern) == ROWS


def test_two_files_of_one_split_ask_which(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(TEXT)
    (tmp_path / "train.parquet").write_bytes(parquet())
    error = refused(tmp_path)
    assert "train.jsonl, train.parquet" in error.found
    assert read(error.fix.rpartition(": ")[2]) == ROWS
