"""A trial's process: following its metrics, reading its result, and ending it and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf.config.search import SearchConfig
from rlhf.core.errors import ConfigError
from rlhf.search import attempt
from rlhf.search.attempt import TrialResult, read_result

REWARD = {
    "overall": 0.8,
    "intervals": {"sections": {"chat": [0.5, 0.9]}, "overall": [0.7, 0.9]},
    "sections": {"chat": 0.75},
    "subsets": {"my.jsonl": {"accuracy": 0.6, "ci95": [0.4, 0.8], "count": 10}},
    "length_correlation": None,
    "aggregation": "pairs",
    "by_strength": {"3": 0.9},
    "bins": [{"low": 0.5, "accuracy": 0.4}],
}
LISTED = {"answers": [{"reward": 1.0}] * 50}  # rows, which are no metrics
POLICY = {
    **LISTED,
    "after": {"gold": 0.5},
    "difference": {"gold": {"mean": 0.2, "ci95": [0.1, 0.3]}},
    "prompts": 8,
}


def search_config(metric: str, pruning: dict[str, str] | None = None) -> SearchConfig:
    return SearchConfig(
        command="train-reward",
        config=Path("base.yaml"),
        parameters={"adapter.rank": {"low": 2, "high": 8}},
        objective={"metric": metric},
        pruning=pruning,
        output=Path("out"),
    )


@pytest.mark.parametrize(
    ("evaluation", "metric", "expected"),
    [
        (REWARD, "overall", (0.8, (0.7, 0.9))),
        (REWARD, "sections.chat", (0.75, None)),
        (REWARD, "subsets.my.jsonl.accuracy", (0.6, (0.4, 0.8))),
        (REWARD, "subsets.my.jsonl.count", (10.0, None)),
        (REWARD, "by_strength.3", (0.9, None)),
        (REWARD, "length_correlation", None),  # null: it was not a finite number
        (POLICY, "difference.gold.mean", (0.2, (0.1, 0.3))),
        (POLICY, "after.gold", (0.5, None)),
    ],
)
def test_the_value_with_its_interval(
    evaluation: object, metric: str, expected: TrialResult | None, tmp_path: Path
) -> None:
    (tmp_path / "eval.json").write_text(json.dumps(evaluation))
    assert read_result(search_config(metric), tmp_path) == expected


def test_no_evaluation_is_no_result(tmp_path: Path) -> None:
    assert read_result(search_config("overall"), tmp_path) is None


def test_a_wrong_metric_lists_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "eval.json").write_text(json.dumps(POLICY))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss/total": 2}\n')
    with pytest.raises(ConfigError) as raised:
        read_result(search_config("diference.gold.mean"), tmp_path)
    assert "difference.gold.mean" in raised.value.found  # the closest name
    assert raised.value.allowed == "after.gold, difference.gold.mean, prompts"
    with pytest.raises(ConfigError) as raised:
        read_result(search_config("prompts", {"metric": "loss/totl"}), tmp_path)
    assert "pruning.metric" in raised.value.fix
    assert raised.value.allowed == "loss/total, step"


def run_python(code: str, folder: Path, prune: Callable[[attempt.MetricsRow], bool]) -> int | None:
    return attempt.run([sys.executable, "-c", code], folder, folder / "log", prune)


def test_a_process_is_stopped_by_its_metrics_and_nothing_else_is(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')  # cut off while it is written
    try:
        assert run_python("import time; time.sleep(60)", tmp_path, lambda row: row["step"] == 2) is None
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_process_that_ends_has_its_exit_code(tmp_path: Path) -> None:
    assert run_python("import sys; print('done'); sys.exit(3)", tmp_path, lambda _: False) == 3
    assert attempt.last_lines(tmp_path / "log") == "    done"


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "GRACE_SECONDS", 0.2)
    code = (
        "import signal, pathlib, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "pathlib.Path('metrics.jsonl').write_text('{\"step\": 1}\\n'); time.sleep(60)"
    )
    monkeypatch.chdir(tmp_path)
    begun = time.monotonic()
    assert run_python(code, tmp_path, lambda _: True) is None
    assert time.monotonic() - begun < 30


def test_a_program_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        attempt.run(["acclerate", "launch"], tmp_path, tmp_path / "log", lambda _: False)
    assert raised.value.found.startswith("launch: 'acclerate'")
