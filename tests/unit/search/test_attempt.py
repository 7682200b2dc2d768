"""A trial's process: following its metrics, reading its result, and ending it and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf.core.errors import ConfigError
from rlhf.search import attempt
from rlhf.search.attempt import MetricRows, Result, read_result
from rlhf.search.folder import locked

REWARD = {
    "overall": 0.8,
    "intervals": {"sections": {"chat": [0.5, 0.9]}, "overall": [0.7, 0.9]},
    "sections": {"chat": 0.75},
    "subsets": {"my.jsonl": {"accuracy": 0.6, "ci95": [0.4, 0.8], "count": 10}},
    "length_correlation": None,
    "aggregation": "pairs",
}
POLICY = {"after": {"gold": 0.5}, "difference": {"gold": {"mean": 0.2, "ci95": [0.1, 0.3]}}, "prompts": 8}


@pytest.mark.parametrize(
    ("evaluation", "metric", "expected"),
    [
        (REWARD, "overall", Result(0.8, (0.7, 0.9))),
        (REWARD, "sections.chat", Result(0.75, None)),
        (REWARD, "subsets.my.jsonl.accuracy", Result(0.6, (0.4, 0.8))),
        (REWARD, "subsets.my.jsonl.count", Result(10.0, None)),
        (REWARD, "length_correlation", None),  # null: it was not a finite number
        (POLICY, "difference.gold.mean", Result(0.2, (0.1, 0.3))),
        (POLICY, "after.gold", Result(0.5, None)),
    ],
)
def test_the_value_with_its_interval(
    evaluation: object, metric: str, expected: Result | None, tmp_path: Path
) -> None:
    (tmp_path / "eval.json").write_text(json.dumps(evaluation))
    assert read_result(tmp_path, metric) == expected


def test_no_evaluation_is_no_result(tmp_path: Path) -> None:
    assert read_result(tmp_path, "overall") is None


def test_a_wrong_path_lists_the_right_ones(tmp_path: Path) -> None:
    (tmp_path / "eval.json").write_text(json.dumps(POLICY))
    with pytest.raises(ConfigError) as raised:
        read_result(tmp_path, "diference.gold.mean")
    assert "has no number 'diference.gold.mean'. Did you mean 'difference.gold.mean'?" in raised.value.found
    assert raised.value.allowed == "after.gold, difference.gold.mean, prompts"


def test_metrics_are_read_as_they_come(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    rows = MetricRows(file)
    assert list(rows.new()) == []
    file.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [row["step"] for row in rows.new()] == [1, 2]
    assert list(rows.new()) == []
    with file.open("a") as out:
        out.write('ep": 3}\n')
    assert [row["step"] for row in rows.new()] == [3]


def test_a_file_that_a_resumed_run_replaced_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    rows = MetricRows(file)
    file.write_text('{"step": 1}\n{"step": 2}\n')
    assert len(list(rows.new())) == 2
    new = tmp_path / "new"
    new.write_text(
        '{"step": 1}\n{"step": 2}\n{"step": 3}\n'
    )  # longer than what was read, and yet another file
    new.replace(file)
    assert [row["step"] for row in rows.new()] == [1, 2, 3]


DEAF = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); "
    "time.sleep(60)"
)


def test_a_process_that_ignores_sigterm_is_killed_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "GRACE_SECONDS", 0.2)
    neighbour = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    log = tmp_path / "log"
    with locked(tmp_path / "lock") as lock:
        process = attempt.start([sys.executable, "-c", DEAF], log, lock)
    try:
        while "ready" not in log.read_text():
            time.sleep(0.01)
        attempt.stop(process)
        assert process.returncode == -9
        assert neighbour.poll() is None
    finally:
        neighbour.kill()
        neighbour.wait()


def test_a_lock_is_held_as_long_as_the_process_that_inherited_it(tmp_path: Path) -> None:
    with locked(tmp_path / "lock") as lock:
        process = attempt.start([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log", lock)
    waited: list[bool] = []

    def end_it() -> None:
        waited.append(True)
        process.kill()
        process.wait()

    with locked(tmp_path / "lock", waiting=end_it):
        assert waited == [True]


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "lock") as lock,
        pytest.raises(ConfigError, match="launch: 'acclerate' cannot be started: No such file"),
    ):
        attempt.start(["acclerate", "launch"], tmp_path / "log", lock)
