"""`rlhf align-policy` on the embedded model with vLLM in the same process, as the demo does it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from architectures import build_to_chat

from rlhf.models.embedded import embedded_model

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed")


def updates(
    folder: Path, learning_rate: float, rollouts: dict[str, Any], **settings: Any
) -> list[dict[str, Any]]:
    """Of a run in a process of its own: vLLM keeps what it takes until the process ends."""
    config = folder / "policy.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "output": str(folder / "run"),
                "model": {"base": "embedded", "max_length": 256},
                "data": {"prompts": [{"path": "demo", "limit": 40}], "max_prompt_tokens": 200},
                "rollouts": {"engine": "vllm", "prompts_per_step": 2, "logprob_bound": 0.2, **rollouts},
                "algorithm": {"unfinished": "keep"},
                "optimizer": {"learning_rate": learning_rate, "warmup_steps": 0},
                "steps": 2,
                "tokens_per_batch": 1024,
                "evaluation": {"prompts": 2, "samples": 1},
                **settings,
            }
        )
    )
    words = [sys.executable, "-m", "rlhf.cli", "align-policy", str(config)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_all_weights_reach_the_engine_at_every_sync(tmp_path: Path) -> None:
    sizes = {"samples_per_prompt": 3, "max_new_tokens": 8, "memory_gib": 0.1}
    rows = updates(tmp_path, 3e-4, sizes, reward={"function": "gold"}, adapter=None)
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["kl/abs_mean"] == 0.0
    # An engine that still sampled from the base would be as far from the policy as that is.
    assert rows[1]["kl/abs_mean"] > 2 * rows[1]["engine/logprob_difference"] > 0
    assert rows[1]["engine/reference_difference"] > 2 * rows[1]["engine/logprob_difference"]


def test_engine_and_trainer_agree_at_every_sync(embedded_reward: Path, tmp_path: Path) -> None:
    sizes = {"samples_per_prompt": 4, "max_new_tokens": 16, "memory_gib": 0.25}
    adapter = {"rank": 8, "alpha": 16}
    rows = updates(tmp_path, 5e-3, sizes, reward=str(embedded_reward), adapter=adapter)
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        # bfloat16 on both sides, other kernels: hundredths.
        assert 0 < row["engine/logprob_difference"] < 0.2
        assert row["engine/logprob_difference"] < row["engine/logprob_difference_max"]
    assert rows[0]["kl/abs_mean"] == 0.0
    # After one large update the policy is far from the base: an engine that still sampled from the base would
    # show it.
    assert rows[1]["kl/abs_mean"] > 2 * rows[1]["engine/logprob_difference"]
    result = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert result["before"]["kl"] == 0.0
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3", "gemma3_text"])
def test_they_agree_on_other_families(tmp_path: Path, family: str) -> None:
    base = build_to_chat(family, tmp_path / "base", embedded_model(), hidden_size=128, head_dim=64, scale=0.1)
    rewards = tmp_path / "rewards.py"
    rewards.write_text(
        "def odd(completion_ids, **kwargs):\n    return [sum(i % 2 for i in ids) for ids in completion_ids]\n"
    )
    rows = updates(
        tmp_path,
        1e-2,
        {"samples_per_prompt": 4, "max_new_tokens": 16, "memory_gib": 0.25},
        model={"base": str(base), "max_length": 256, "dtype": "float32"},
        reward={"function": f"{rewards}:odd"},
        adapter={"rank": 8, "alpha": 16},
    )
    for row in rows:
        assert row["engine/logprob_difference"] < 1e-4
    assert rows[1]["engine/reference_difference"] > 100 * rows[1]["engine/logprob_difference"]
