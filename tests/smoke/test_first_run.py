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
REWARD = f"""
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
"""
POLICY = f"""
model: {{base: embedded, max_length: 256, dtype: float32}}
adapter: {{rank: 4}}
reward: {{function: gold}}
data: {{prompts: [{{path: demo, limit: 40}}], max_prompt_tokens: 128}}
rollouts: {{engine: transformers, prompts_per_step: 2, samples_per_prompt: 4, max_new_tokens: 12}}
algorithm: {{unfinished: keep}}
optimizer: {{learning_rate: 1.0e-3, warmup_steps: 0}}
steps: {UPDATES}
tokens_per_batch: 512
evaluation: {{prompts: 2, samples: 1}}
"""


@pytest.mark.parametrize(
    ("command", "config", "metric"),
    [("train-reward", REWARD, "loss/total"), ("align-policy", POLICY, "optimizer/grad_norm")],
)
def test_a_run_on_an_empty_cache_has_the_figures_of_the_next_one(
    tmp_path: Path, command: str, config: str, metric: str
) -> None:
    cache, figures = tmp_path / "cache", []
    for number in (1, 2):
        assert (cache / "models").exists() == (number == 2)
        run = tmp_path / f"run-{number}"
        file = tmp_path / "config.yaml"
        file.write_text(f"output: {run}\n{config}")
        done = subprocess.run(
            [sys.executable, "-m", "rlhf.cli", command, str(file)],
            env=os.environ | {"RLHF_CACHE": str(cache)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        figures.append([row[metric] for row in rows if metric in row])
    assert len(figures[0]) == UPDATES
    assert len(set(figures[0])) == UPDATES, (
        "the updates change nothing, so that equal figures would show nothing"
    )
    assert figures[0] == figures[1]
