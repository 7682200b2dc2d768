"""The scripts that measure speed measure what they say they do."""

from __future__ import annotations

import importlib.util
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf.config.schema import DataSource
from rlhf.data.load import load_preferences, load_ratings

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_made_up_rows_have_helpsteer2s_schema_and_proportions(tmp_path: Path) -> None:
    rows = 4000
    script("read_and_tokenise").make_files(tmp_path, rows)
    ratings, report = load_ratings([DataSource(path=str(tmp_path), format="helpsteer2")], seed=0)
    assert report.read == report.kept == rows
    pairs = DataSource(path=str(tmp_path), format="helpsteer2-preference")
    preferences, _ = load_preferences([pairs], seed=0, max_spread=2)
    assert len(preferences) == rows / 2
    prompts = [pair.prompt for pair in preferences]
    # The standard error of a mean of 2,000 prompts is about 3 %, of 4,000 responses 1.5 %.
    assert statistics.mean(sum(len(m.content) for m in p) for p in prompts) == pytest.approx(713, rel=0.1)
    assert statistics.mean(len(rating.response) for rating in ratings) == pytest.approx(1493, rel=0.05)
    assert statistics.mean(len(prompt) > 1 for prompt in prompts) == pytest.approx(0.29, abs=0.04)


@pytest.mark.slow
def test_reading_and_tokenising_is_measured_whole(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["read_and_tokenise.py", "--rows", "40", "--preferences"])
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS.parent))
    module = script("read_and_tokenise")
    monkeypatch.setattr(module, "MOST_SECONDS", 1e9)  # forty rows are hardly more than the imports
    module.main()
    assert "60 rows to 20 items of " in capfd.readouterr().out


def test_both_sides_score_alike_and_are_timed(
    tiny_reward: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["scoring.py", str(tiny_reward), "demo", "--pairs", "5", "--rounds", "1"]
    )
    monkeypatch.setenv("COLUMNS", "120")
    scoring = script("scoring")
    scoring.main()
    output = capsys.readouterr().out
    assert "10 conversations" in output
    assert all(f"transformers, batches of {size}" in output for size in scoring.BATCH_SIZES)
    assert "Ours takes" in output


def test_scores_that_differ_stop_the_comparison() -> None:
    module = script("scoring")
    assert module.require_equal({"ours": [10.0, -2.0], "theirs": [10.001, -2.0]}) == pytest.approx(1e-4)
    with pytest.raises(SystemExit, match=r"0\.2"):
        module.require_equal({"ours": [10.0, -2.0], "theirs": [8.0, -2.0]})
    with pytest.raises(SystemExit, match="nan"):
        module.require_equal({"ours": [10.0], "theirs": [float("nan")]})
