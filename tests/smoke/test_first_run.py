"""The first run on a machine, which converts the embedded model, computes what the second one computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
UPDATES = 4


def test_a_run_on_an_empty_cache_has_the_losses_of_the_next_one(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    losses = []
    for number in (1, 2):
        assert (cache / "models").exists() == (number == 2)
        run = tmp_path / f"run-{number}"
        config = tmp_path / "reward.yaml"
        config.write_text(f"""
output: {run}
model: {{base: embedded, max_length: 128, dtype: float32}}
adapter: {{rank: 4}}
data:
  preferences: [{{path: demo, format: helpsteer2-preference, limit: 40}}]
  validation_share: 0.0
stages:
  - {{name: pairs, preference_weight: 1, batch_size: 2, max_steps: {UPDATES},
      optimizer: {{learning_rate: 1.0e-3, warmup_steps: 0}}}}
head_start: 8
tokens_per_batch: 512
""")
        done = subprocess.run(
            [sys.executable, "-m", "rlhf.cli", "train-reward", str(config)],
            env=os.environ | {"RLHF_CACHE": str(cache)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["loss/total"] for row in rows if "loss/total" in row])
    assert len(losses[0]) == UPDATES
    assert len(set(losses[0])) == UPDATES, "the updates change nothing, so equal losses would show nothing"
    assert losses[0] == losses[1]
