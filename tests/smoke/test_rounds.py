"""A second round: an aligned policy is where the next one starts, and what it is held to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from rlhf import cli

Rlhf = Callable[..., Result]
PPO = "algorithm={name: ppo, epochs: 2, unfinished: keep}"


def run_of(*words: Any) -> Result:
    return CliRunner().invoke(cli.app, [str(word) for word in words], prog_name="rlhf")


@pytest.fixture(scope="module")
def first(policy_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rounds") / "1"
    result = run_of("align-policy", policy_config, PPO, "--output", folder)
    assert result.exit_code == 0, result.output
    return folder


def start(first: Path) -> str:
    return f"start={first / 'final'}"


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_two_rounds(first: Path, policy_config: Path, tiny_base: Path, tmp_path: Path) -> None:
    second = tmp_path / "2"
    result = run_of("align-policy", policy_config, PPO, start(first), "--output", second)
    assert result.exit_code == 0, result.output
    single, two = (json.loads((run / "eval.json").read_text()) for run in (first, second))
    # It begins with the answers that the first round ended with, at no distance from its own reference.
    assert two["before"] | {"kl": 0} == single["after"] | {"kl": 0}
    assert two["before"]["kl"] == 0.0 != single["after"]["kl"]
    rows = metrics(second)
    assert rows[0]["kl/abs_mean"] == 0.0 < rows[1]["kl/abs_mean"]
    card = json.loads((second / "final" / "policy.json").read_text())
    assert card["start"] == str(first / "final")
    assert "started from the policy" in (second / "final" / "README.md").read_text()


def test_the_policy_of_a_second_round_is_one_plain_adapter(
    first: Path, policy_config: Path, tiny_base: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    words = [start(first), "optimizer.learning_rate=1.0e-9", "steps=1"]  # all but the policy it started as
    result = run_of("align-policy", policy_config, *words, "--output", tmp_path / "2")
    assert result.exit_code == 0, result.output
    old, new = (load_file(run / "final" / "adapter_model.safetensors") for run in (first, tmp_path / "2"))
    assert old.keys() == new.keys() and not [name for name in new if "critic" in name or "value" in name]
    assert all(torch.allclose(old[name], new[name], atol=1e-6) for name in old)
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_base), tmp_path / "2" / "final"
    )
    ids = AutoTokenizer.from_pretrained(tmp_path / "2" / "final")("Hello", return_tensors="pt")["input_ids"]
    with torch.no_grad(), model.disable_adapter():
        base = model(ids).logits
    with torch.no_grad():
        assert (model(ids).logits - base).abs().max() > 1e-3


def test_on_a_4_bit_base_too(first: Path, policy_config: Path, tmp_path: Path) -> None:
    words = [PPO, start(first), "model.quantization=nf4", "model.dtype=bfloat16", "steps=2"]
    result = run_of("align-policy", policy_config, *words, "--output", tmp_path / "2")
    assert result.exit_code == 0, result.output
    assert [row["kl/abs_mean"] > 0 for row in metrics(tmp_path / "2")] == [False, True]


def test_a_policy_that_does_not_fit_is_refused_with_every_difference(
    first: Path, policy_config: Path, tmp_path: Path
) -> None:
    words = [start(first), "adapter={rank: 8, alpha: 4}"]
    result = run_of("align-policy", policy_config, *words, "--output", tmp_path / "2")
    assert result.exit_code == 2
    output = " ".join(result.output.split())
    assert "adapter.rank: 4 there, 8 here" in output and "adapter.alpha: 8.0 there, 4.0 here" in output
    assert "a policy with the same base, chat template and adapter settings" in output


def test_a_policy_on_another_base_is_refused(
    first: Path, policy_config: Path, other_base: Path, tmp_path: Path
) -> None:
    words = [start(first), f"model.base={other_base}", "reward={function: gold}", "--output", tmp_path / "2"]
    result = run_of("align-policy", policy_config, *words)
    assert result.exit_code == 2
    assert "base: " in result.output


def test_a_missing_policy_is_found_by_a_dry_run(policy_config: Path, tmp_path: Path) -> None:
    words = [f"start={tmp_path / 'nowhere'}", "--dry-run", "--output", tmp_path / "2"]
    result = run_of("align-policy", policy_config, *words)
    assert result.exit_code == 2
    assert str(tmp_path / "nowhere") in result.output.replace("\n", "")


def test_a_dry_run_tells_the_roles(
    first: Path, policy_config: Path, tiny_reward: Path, tmp_path: Path
) -> None:
    words = ["align-policy", policy_config, PPO, start(first), "--dry-run", "--output", tmp_path / "2"]
    result = run_of(*words)
    assert result.exit_code == 0, result.output
    assert f"Reference: a frozen copy of {first / 'final'}, from which the policy starts" in result.stdout
    assert f"starts from {tiny_reward}; learning rate 0.0003, values clipped at 0.2" in result.stdout
    assert "Advantages: per token, discount 1, lambda 0.95, whitened over the update" in result.stdout
    assert "Epochs per update: 2, each with an optimizer step of policy and critic" in result.stdout
