from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf.config.schema import DataSource
from rlhf.core.errors import DataError
from rlhf.data.sources.rows import Row, looks_local, read_rows

ROWS = [{"prompt": f"q{number}", "kind": "even" if number % 2 == 0 else "odd"} for number in range(10)]


def read(path: str | Path, seed: int = 0, **options: Any) -> list[Row]:
    return list(read_rows(DataSource(path=str(path), **options), seed=seed))


def write(path: Path, text: str | bytes) -> Path:
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def lines(rows: list[dict[str, str]]) -> str:
    return "\n".join(map(json.dumps, rows)) + "\n"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.json.gz"])
def test_json_lines_carry_file_and_line(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "\n" + lines(ROWS))
    rows = read(path)
    assert [dict(row.values) for row in rows] == ROWS
    assert rows[0].place == f"{path}:2"  # the empty first line is no row, and is counted


@pytest.mark.parametrize("name", ["rows.json", "rows.json.gz"])
def test_a_json_array_carries_the_row_number(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, b"\xef\xbb\xbf" + json.dumps(ROWS, indent=1).encode())
    rows = read(path)
    assert [dict(row.values) for row in rows] == ROWS
    assert rows[2].place == f"{path}: row 3"


@pytest.mark.parametrize("name", ["rows.parquet", "rows.parquet.gz"])
def test_parquet_rows(tmp_path: Path, name: str) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)
    path = write(tmp_path / name, sink.getvalue().to_pybytes())
    rows = read(path)
    assert [dict(row.values) for row in rows] == ROWS
    assert rows[9].place == f"{path}: row 10"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"prompt": "q"', "JSON"),
        ("[1, 2]", "a list"),
        ('{"prompt": "\udcff"}', "not UTF-8"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, bad: str, message: str) -> None:
    text = lines(ROWS[:2]) + bad + "\n" + lines(ROWS[2:])
    path = write(tmp_path / "rows.jsonl", text.encode(errors="surrogateescape"))
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.found.startswith(f"{path}:3: ") and message in caught.value.found
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.jsonl.gz", gzip.compress(lines(ROWS).encode(), mtime=0)[:-12]),
        ("cut.parquet", b"PAR1 and no more"),
    ],
)
def test_a_broken_file_is_an_error_of_the_data(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(path) in caught.value.found


def test_another_kind_of_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'\.txt'") as caught:
        read(write(tmp_path / "rows.txt", "a,b\n"))
    assert ".jsonl" in caught.value.allowed


@pytest.mark.parametrize(("typed", "meant"), [("sub/row.jsonl", "rows.jsonl"), ("sbu/rows.jsonl", "sub")])
def test_a_missing_path_names_the_closest(tmp_path: Path, typed: str, meant: str) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "rows.jsonl", lines(ROWS))
    with pytest.raises(DataError, match=f"{typed}.* '{meant}'"):
        read(tmp_path / typed)


@pytest.mark.parametrize(
    ("path", "local"),
    [
        ("nvidia/HelpSteer2", False),
        ("squad", False),
        ("data/train.jsonl.gz", True),
        ("train.csv", True),
        ("./nvidia/HelpSteer2", True),
        ("/data/set", True),
        ("a/b/c", True),
    ],
)
def test_what_looks_local(path: str, local: bool) -> None:
    assert looks_local(path) is local


def test_an_existing_folder_comes_before_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    write(tmp_path / "org" / "name" / "train.jsonl", lines(ROWS))
    monkeypatch.chdir(tmp_path)
    assert len(read("org/name")) == 10


def test_a_folder_of_parquet_shards(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for shard in range(2):
        table = pa.Table.from_pylist(ROWS[5 * shard : 5 * shard + 5])
        pq.write_table(table, tmp_path / "data" / f"train-0000{shard}-of-00002.parquet")
    assert [dict(row.values) for row in read(tmp_path)] == ROWS


def test_a_folder_without_the_split_lists_what_it_has(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", lines(ROWS))
    with pytest.raises(DataError, match=r"test\.jsonl\.gz.* train\.jsonl"):
        read(tmp_path, split="test")


def test_where_keeps_matching_rows_with_their_places(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", lines(ROWS))
    assert [row.place for row in read(path, where={"kind": ["odd"], "prompt": ["q1", "q2", "q3"]})] == [
        f"{path}:2",
        f"{path}:4",
    ]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            {"kind": ["evne"]},
            r"'even'.*\n.*kind: even, odd",
        ),
        ({"knid": ["even"]}, r"where\.knid: .*'kind'"),
    ],
)
def test_where_that_matches_nothing(tmp_path: Path, where: dict[str, list[str]], message: str) -> None:
    path = write(tmp_path / "rows.jsonl", lines(ROWS))
    with pytest.raises(DataError, match=message):
        read(path, where=where)


def test_limit_draws_by_the_seed_and_keeps_the_order(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", lines(ROWS))

    def drawn(seed: int, limit: int) -> list[str]:
        return [row.values["prompt"] for row in read(path, seed, limit=limit)]

    assert drawn(0, 4) == drawn(0, 4) == sorted(drawn(0, 4))
    assert len({tuple(drawn(seed, 4)) for seed in range(20)}) > 10
    assert drawn(0, 10) == drawn(0, 99) == [row["prompt"] for row in ROWS]


def test_limit_draws_every_row_equally_often(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", lines(ROWS))
    draws = [row.values["prompt"] for seed in range(500) for row in read(path, seed, limit=2)]
    counts = [draws.count(row["prompt"]) for row in ROWS]
    # Binomial(500, 1/5): mean 100, standard deviation 8.9; five of them on either side.
    assert all(55 < count < 145 for count in counts)


ROW = Row(
    "f.jsonl:7",
    {"a.b": 1, "a": {"b": 2, "c": {"d": 3}}, "text": "x", "flag": True, "none": None, "half": 0.5},
)


def test_a_column_may_be_a_path() -> None:
    assert [ROW.find(column) for column in ("a.b", "a.c.d", "a.x", "text.x", "none")] == [
        1,
        3,
        None,
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (
            lambda: ROW.text("txet"),
            r"f\.jsonl:7: .*'txet'.* 'text'.*\n.*a\.b",
        ),
        (lambda: ROW.text("none"), r"f\.jsonl:7: .*'none'"),
        (lambda: ROW.text("half"), r"f\.jsonl:7: .*'half' .*0\.5\n.*string"),
        (lambda: ROW.number("text", 0, 4), r"'text' .*'x'\n.*0 .*4"),
        (lambda: ROW.number("flag", 0, 4), "'flag' .*True"),
        (lambda: ROW.number("half", 1, 4), "1 .*4"),
        (lambda: ROW.integer("half", -3, 3), "-3 .*3"),
    ],
)
def test_a_wrong_column_is_named(use: Callable[[], object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        use()
