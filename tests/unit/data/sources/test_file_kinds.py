from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest

from rlhf.config.schema import DataSource
from rlhf.core.errors import DataError
from rlhf.data import rules
from rlhf.data.load import load_preferences
from rlhf.data.sources.files import file_rows
from rlhf.data.sources.rows import read_rows

ROWS = [
    {"prompt": "Name a colour, please.", "chosen": 'Blue\nor "red".', "rejected": "Seven."},
    {"prompt": "Name a fruit.", "chosen": "Pear.", "rejected": "Brick."},
]
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}


def read(path: Path | str, **options: Any) -> list[dict[str, Any]]:
    return [dict(row.values) for row in read_rows(DataSource(path=str(path), **options), seed=0)]


def write_csv(path: Path, delimiter: str) -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.DictWriter(stream, [*COLUMNS], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


def write_arrow(path: Path, *, stream: bool) -> None:
    table = pa.Table.from_pylist(ROWS)
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
        writer.write_table(table)


def write_zst(path: Path) -> None:
    with pa.output_stream(str(path), compression="zstd") as sink:
        sink.write("".join(json.dumps(row) + "\n" for row in ROWS).encode())


WRITERS = {
    "rows.csv": lambda path: write_csv(path, ","),
    "rows.tsv": lambda path: write_csv(path, "\t"),
    "rows.jsonl.zst": write_zst,
    "stream.arrow": lambda path: write_arrow(path, stream=True),
    "file.arrow": lambda path: write_arrow(path, stream=False),
    "columns.json": lambda path: path.write_text(json.dumps(COLUMNS)),
    "columns-indented.json": lambda path: path.write_text(json.dumps(COLUMNS, indent=1)),
    "array.jsonl": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "wrapped.json": lambda path: path.write_text(json.dumps({"data": ROWS})),
    "lines.json": lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in ROWS)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_kind_of_file(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    assert read(tmp_path / name) == ROWS


def test_one_row_with_a_conversation_is_no_object_of_columns(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "q"}]}
    (tmp_path / "one.json").write_text(json.dumps(row))
    assert read(tmp_path / "one.json") == [row]


def test_a_folder_that_save_to_disk_wrote(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": data, "test": data.select([1])}).save_to_disk(str(tmp_path / "splits"))
    assert read(tmp_path / "one") == ROWS
    assert read(tmp_path / "splits", split="test") == ROWS[1:]
    with pytest.raises(DataError, match="train, test"):
        read(tmp_path / "splits", split="validation")


def test_a_folder_or_another_ending_where_one_file_is_expected(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    for name, found, fix in (
        ("", "is a folder; one file is expected", "name a file in it: a.jsonl"),
        ("rows.JSONL", "ends in '.JSONL'", "rename it to rows.jsonl"),
        ("rows.txt", "ends in '.txt'", "write it as JSON Lines"),
    ):
        with pytest.raises(DataError) as caught:
            file_rows(tmp_path / name)
        assert found in caught.value.found and fix in caught.value.fix
        assert not name or "folder of such files" in caught.value.allowed


def test_a_pattern_reads_its_files_in_order(tmp_path: Path) -> None:
    for number, row in enumerate(ROWS):
        (tmp_path / f"part-{number}.jsonl").write_text(json.dumps(row))
    assert read(tmp_path / "part-*.jsonl") == ROWS
    with pytest.raises(DataError, match=r"x-\*"):
        read(tmp_path / "x-*.jsonl")


def test_a_configuration_is_a_folder_of_a_local_copy(tmp_path: Path) -> None:
    (tmp_path / "feedback").mkdir()
    (tmp_path / "feedback" / "train.jsonl").write_text(json.dumps(ROWS[0]))
    assert read(tmp_path, config_name="feedback") == ROWS[:1]
    with pytest.raises(DataError, match="'feedback'"):
        read(tmp_path, config_name="feedbak")


def test_numbers_of_a_csv_are_parsed_where_a_number_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt,chosen,rejected,strength\n1,2,3,3\n")
    source = DataSource(path=str(tmp_path / "rows.csv"), columns={"strength": "strength"})
    (item,), _ = load_preferences([source], seed=0, max_spread=2)
    assert (item.prompt[0].content, item.chosen, item.strength) == ("1", "2", -3)


@pytest.mark.parametrize("text", ["a,b\n1\n", "a,a\n1,2\n", "a,b\n", 'a,b\n"1,2\n'])
def test_a_broken_csv_is_an_error_with_its_place(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(DataError, match=r"rows\.csv"):
        read(tmp_path / "rows.csv")


def test_a_repeated_key_is_dropped_and_counted(tmp_path: Path) -> None:
    line = json.dumps(ROWS[0])
    twice = line[:-1] + ', "chosen": "Green."}'
    (tmp_path / "rows.jsonl").write_text(f"{line}\n{twice}\n")
    source = DataSource(path=str(tmp_path / "rows.jsonl"))
    items, report = load_preferences([source], seed=0, max_spread=2)
    assert len(items) == 1 and report.reasons == {rules.REPEATED_KEY: 1}
