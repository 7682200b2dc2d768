"""Rewards that are too large, or equal within every group: the run says which, and does not end as if it had
learned."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Rlhf = Callable[..., Result]


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text(
        "def large(completions, **_): return [1e20 * (n % 3) for n in range(len(completions))]\n"
        "def beyond(completions, **_): return [1e38 * (n % 3) for n in range(len(completions))]\n"
        "def equal(completions, **_): return [1.0] * len(completions)\n"
    )
    return file


@pytest.mark.parametrize("name", ["large", "beyond"])
def test_a_gradient_that_is_not_finite_names_the_rewards(
    name: str, rlhf_command: Rlhf, policy_config: Path, functions: Path, tmp_path: Path
) -> None:
    words = ["align-policy", policy_config, f"reward={{function: '{functions}:{name}'}}", "--output"]
    failed = rlhf_command(*words, tmp_path / "run")
    assert failed.exit_code == 1
    assert "2e+" in failed.stderr and "reward_shaping.clip=[-1e6,1e6]" in failed.stderr
    fixed = rlhf_command(*words, tmp_path / "fixed", "reward_shaping.clip=[-1e6,1e6]")
    assert fixed.exit_code == 0, fixed.output


def test_groups_without_spread_are_named(
    rlhf_command: Rlhf, policy_config: Path, functions: Path, tmp_path: Path
) -> None:
    words = [f"reward={{function: '{functions}:equal'}}", "--output", tmp_path / "run"]
    result = rlhf_command("align-policy", policy_config, *words)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["reward/groups_with_spread"] for row in rows] == [0.0] * len(rows)
    assert "No group had a spread" in result.stdout
    assert result.stdout.index("No measurable change") < result.stdout.index(
        "before"
    )  # the verdict comes first
    assert "No group had a spread" in (tmp_path / "run" / "report.html").read_text()


def test_answers_that_are_all_cut_off_are_named(
    rlhf_command: Rlhf, policy_config: Path, tmp_path: Path
) -> None:
    words = ["algorithm.unfinished=drop", "rollouts.max_new_tokens=1", "--output", tmp_path / "run"]
    result = rlhf_command("align-policy", policy_config, *words)
    assert result.exit_code == 0, result.output
    printed = " ".join(result.stdout.split())
    assert printed.count("of the sampled answers take no part in training") == 2  # update 1, and the verdict
    assert "Warning: " in printed and "No group had a spread" in printed


def test_prompts_that_repeat_within_an_update_are_a_warning(
    rlhf_command: Rlhf, policy_config: Path, functions: Path
) -> None:
    words = ["align-policy", policy_config, f"reward={{function: '{functions}:equal'}}", "--dry-run"]
    assert "repeat within an update" not in rlhf_command(*words).stdout
    few = rlhf_command(*words, "data.prompts=[{path: demo, limit: 12}]", "rollouts.prompts_per_step=16")
    assert few.exit_code == 0, few.output
    assert "repeat within an update" in few.stdout
