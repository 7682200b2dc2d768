"""Reading a run folder, whole or not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf.core.errors import DataError
from rlhf.report.files import read_run


def write(folder: Path, **files: str) -> Path:
    """Files by their name without the ending."""
    endings = {"config": "yaml", "metrics": "jsonl", "samples": "jsonl"}
    for name, text in files.items():
        (folder / f"{name}.{endings.get(name, 'json')}").write_text(text, encoding="utf-8")
    return folder


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere") as caught:
        read_run(tmp_path / "nowhere")
    assert caught.value.exit_code == 2


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=str(tmp_path)) as caught:
        read_run(tmp_path)
    assert "metrics.jsonl" in caught.value.allowed and "runs/demo/policy" in caught.value.fix


def test_the_kind_follows_from_the_files(
    tmp_path: Path, policy_run: Path, reward_run: Path, make_policy: Callable[..., Path]
) -> None:
    assert read_run(policy_run).kind == "policy"
    assert read_run(reward_run).kind == "reward"
    for name in ("config.yaml", "eval.json", "samples.jsonl"):
        (policy_run / name).unlink()
        assert read_run(policy_run).kind == "policy"
    for name in ("config.yaml", "eval.json"):
        (reward_run / name).unlink()
        assert read_run(reward_run).kind == "reward"


def test_lines_of_one_step_are_joined_and_sorted(tmp_path: Path) -> None:
    rows = [{"step": 2, "a": 1}, {"step": 1, "a": 5}, {"step": 2, "b": 3}, {"step": 1, "a": 7}]
    run = read_run(write(tmp_path, metrics="".join(json.dumps(row) + "\n" for row in rows)))
    assert run.metrics == [{"step": 1, "a": 7}, {"step": 2, "a": 1, "b": 3}]
    assert run.values("a") == [(1, 7.0), (2, 1.0)]
    assert (run.span, run.last_step) == ((1, 2), 2)


def test_torn_lines_are_counted_with_their_place(tmp_path: Path) -> None:
    text = '{"step": 1, "a": 1}\n[3]\n\n{"a": 2}\n{"step": 2, "a'
    run = read_run(write(tmp_path, metrics=text))
    assert run.values("a") == [(1, 1.0)]
    assert run.notes == ["3 lines could not be read and were left out (first at metrics.jsonl:2)."]


def test_values_that_are_not_numbers_are_dropped_and_reported(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": math.nan}, {"step": 3, "loss": None}]
    run = read_run(write(tmp_path, metrics="".join(json.dumps(row) + "\n" for row in rows)))
    assert run.values("loss") == [(1, 1.0)]
    assert run.notes == ["loss was not a finite number 2 times, first at step 2."]


def test_broken_files_are_named(tmp_path: Path) -> None:
    run = read_run(write(tmp_path, config="a: [1", eval="{", environment="[]"))
    assert [note.split(" ")[0] for note in run.notes] == ["config.yaml", "eval.json", "environment.json"]


def test_samples_of_the_first_and_the_last_step_are_kept(tmp_path: Path) -> None:
    rows = [{"step": step, "answer": f"{step}/{i}"} for step in (1, 2, 3) for i in range(2)]
    run = read_run(write(tmp_path, samples="".join(json.dumps(row) + "\n" for row in rows)))
    assert {step: [row["answer"] for row in rows] for step, rows in run.samples.items()} == {
        1: ["1/0", "1/1"],
        3: ["3/0", "3/1"],
    }


def test_drops_are_found_in_either_place(tmp_path: Path) -> None:
    result = {"read": 3, "kept": 2}
    assert read_run(write(tmp_path, eval=json.dumps({"drops": {"read": 9}}))).drops == {"read": 9}
    assert read_run(write(tmp_path, drops=json.dumps(result), config="stages: []")).drops == result
