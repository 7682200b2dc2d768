"""`rlhf align-policy` with transformers' continuous batching on the trained model itself: on a CPU, for
correctness."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_a_run_whose_rollouts_share_the_trained_base(
    rlhf_command: Callable[..., Any], policy_config: Path, tmp_path: Path
) -> None:
    done = rlhf_command(
        "align-policy",
        policy_config,
        "rollouts.continuous_batching=true",
        "rollouts.logprob_bound=1e-3",  # engine and trainer compute the same
        "steps=2",
        "--output",
        tmp_path / "run",
    )
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert all(0 < line["engine/logprob_difference"] < 1e-4 for line in lines)


def test_it_goes_with_transformers_alone(rlhf_command: Callable[..., Any], policy_config: Path) -> None:
    done = rlhf_command(
        "align-policy",
        policy_config,
        "rollouts.engine=vllm",
        "rollouts.continuous_batching=true",
        "--dry-run",
    )
    assert done.exit_code == 2
