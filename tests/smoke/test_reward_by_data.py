"""The benchmark of accuracy by number of pairs, from the split to the table, on a tiny base."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import yaml

from rlhf.data.demo.dataset import demo_rows

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def test_both_sides_are_trained_scored_and_compared(tiny_base: Path, tmp_path: Path) -> None:
    sources = {}
    for kind, count in (("helpsteer2-preference", 80), ("helpsteer2", 40)):
        rows = islice(demo_rows(kind, "train"), count)  # type: ignore[arg-type]
        file = tmp_path / f"{kind}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources[kind] = [{"path": str(file), "format": kind}]
    stage = {"name": "hybrid", "regression_weight": 0.5, "preference_weight": 1.0, "batch_size": 8}
    config = {
        "output": "unused",
        "model": {"base": str(tiny_base), "max_length": 400, "dtype": "float32"},
        "adapter": {"rank": 4, "alpha": 8},
        "data": {
            "validation_share": 0.2,
            "test_share": 0.2,
            "preferences": sources["helpsteer2-preference"],
            "ratings": sources["helpsteer2"],
        },
        "stages": [stage],
        "head_start": 8,
    }
    file, output = tmp_path / "config.yaml", tmp_path / "by-data"
    file.write_text(yaml.safe_dump(config))
    words = [file, "--output", output, "--pairs", 16, "--held-out", 6, "--threads", 1]
    recipe = "helpfulness-bt-scaled"
    for side in ([], ["--trl"], ["--recipe", recipe]):
        call("reward_by_data.py", *words, *side)
    table = call("reward_by_data_table.py", output, "--picture", tmp_path / "curve.svg")
    for side in ("hybrid", recipe, "TRL's RewardTrainer"):
        assert f"| {side} | 16 | 0.0001 | 1 |" in table
    for side in (recipe, "TRL's RewardTrainer"):
        assert f"hybrid minus {side}, 16 pairs, 1 seeds:" in table
    resolved = yaml.safe_load((output / "runs" / f"{recipe}-16-0.0001-seed0" / "config.yaml").read_text())
    assert [stage["name"] for stage in resolved["stages"]] == ["regression", "preference"]
    assert "<svg" in (tmp_path / "curve.svg").read_text()
    cells = [json.loads(cell.read_text()) for cell in (output / "cells").iterdir()]
    ours, theirs, by_recipe = [[row[0:1] + row[3:] for row in cell["test"]["pairs"]] for cell in cells]
    assert ours == theirs == by_recipe and len(ours) == 6  # the same pairs in the same order
    assert call("reward_by_data.py", *words) == "ours-16-0.0001-seed0: done\n"

    trl = output / "cells" / "trl-16-0.0001-seed0.json"
    whole = json.loads(trl.read_text())
    trl.unlink()  # as if it had been interrupted after its last checkpoint
    call("reward_by_data.py", *words, "--trl")
    resumed = json.loads(trl.read_text())
    assert resumed["training_seconds"] is None and resumed["test"] == whole["test"]


def call(script: str, *words: object) -> str:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / script, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
