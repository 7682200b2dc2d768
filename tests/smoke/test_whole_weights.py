"""`rlhf align-policy` with `adapter: null`: all weights are trained, and a whole model is left."""

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
WHOLE = ["adapter=null", "optimizer.learning_rate=1.0e-3"]


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, policy_config: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    words = ["align-policy", str(policy_config), *WHOLE, "held_out_reward={function: gold}"]
    result = CliRunner().invoke(cli.app, [*words, "--output", str(folder)], prog_name="rlhf")
    assert result.exit_code == 0, result.output
    return folder


def test_it_begins_as_the_reference_and_goes_away_from_it(run: Path) -> None:
    rows = lines(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[0]["kl/abs_mean"] == 0.0  # exactly: both are kept in the same format
    assert rows[1]["kl/abs_mean"] > 0.01
    result = json.loads((run / "eval.json").read_text())
    assert result["before"]["kl"] == 0.0 and result["after"]["kl"] != 0.0
    assert (run / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_a_whole_model_is_left_every_weight_of_it_trained(run: Path, tiny_base: Path) -> None:
    assert sorted(file.name for file in (run / "final").iterdir()) == [
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    trained, base = (load_file(folder / "model.safetensors") for folder in (run / "final", tiny_base))
    assert trained.keys() == base.keys()
    for name, weight in trained.items():
        moved = (weight - base[name]).abs().max().item()
        assert 1e-5 < moved < 3.5e-3, name  # AdamW moves a weight by about the rate at each of three updates


def test_transformers_and_our_commands_take_it_as_a_model(
    run: Path, rlhf_command: Rlhf, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(run / "final")
    ids = AutoTokenizer.from_pretrained(run / "final")("Hello there", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert model(ids).logits.isfinite().all()
    card = (run / "final" / "README.md").read_text()
    assert "library_name: transformers" in card and "A whole model, all weights of which were trained" in card
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hi."}\n')
    words = ["generate", run / "final", "--prompts", tmp_path / "prompts.jsonl", "--format", "jsonl"]
    result = rlhf_command(*words, "--output", tmp_path / "answers.jsonl", "--max-new-tokens", 4)
    assert result.exit_code == 0, result.output
    assert len(lines(tmp_path / "answers.jsonl")) == 1
    result = rlhf_command("export", run / "final", "--output", tmp_path / "exported")
    assert result.exit_code == 2 and "complete model" in flat(result.output)


@pytest.mark.usefixtures("as_configured")
def test_it_is_computed_and_saved_in_the_format_of_its_base(
    rlhf_command: Rlhf, policy_config: Path, tmp_path: Path
) -> None:
    words = ["align-policy", policy_config, *WHOLE, "steps=1", "model.dtype=bfloat16"]
    result = rlhf_command(*words, "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    # In bfloat16 by autocast, the frozen copy too.
    assert lines(tmp_path / "run" / "metrics.jsonl")[0]["kl/abs_mean"] == 0.0
    assert json.loads((tmp_path / "run" / "eval.json").read_text())["before"]["kl"] == 0.0
    kept = load_file(tmp_path / "run" / "checkpoints" / "step-1" / "trainable.safetensors")
    left = load_file(tmp_path / "run" / "final" / "model.safetensors")
    assert {weight.dtype for weight in kept.values()} == {torch.float32}  # for the next update
    assert {weight.dtype for weight in left.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "run" / "final" / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_config_is_that_of_the_base_and_says_what_it_was_trained_as(run: Path, tiny_base: Path) -> None:
    trained, base = (
        json.loads((folder / "config.json").read_text()) for folder in (run / "final", tiny_base)
    )
    card = trained.pop("rlhf_policy")
    assert card["base"] == str(tiny_base) and card["template_date"] == "26 Jul 2024"
    assert trained == base


def test_adapters_on_its_base_do_not_fit_it_however_little_it_moved(
    rlhf_command: Rlhf, policy_config: Path, tmp_path: Path
) -> None:
    words = ["align-policy", policy_config, *WHOLE, "optimizer.learning_rate=1.0e-9", "steps=1"]
    assert rlhf_command(*words, "--output", tmp_path / "run").exit_code == 0
    again = ["align-policy", policy_config, f"model.base={tmp_path / 'run' / 'final'}"]
    result = rlhf_command(*again, "--output", tmp_path / "again")
    assert result.exit_code == 2 and "fingerprint" in flat(result.output)


def test_it_has_no_base_to_be_talked_with_beside_it(run: Path, rlhf_command: Rlhf) -> None:
    result = rlhf_command("chat", run / "final", "--base")
    assert result.exit_code == 2 and "whole model" in flat(result.output)


def test_a_dry_run_says_so(rlhf_command: Rlhf, policy_config: Path, tmp_path: Path) -> None:
    result = rlhf_command("align-policy", policy_config, *WHOLE, "--dry-run", "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "Reference: a frozen copy of the base" in flat(result.stdout)


@pytest.mark.parametrize(
    ("words", "output"),
    [
        (["model.quantization=nf4"], "model.quantization"),
        (
            ["rollouts={engine: servers, servers: ['http://127.0.0.1:1']}"],
            "rollouts.engine",
        ),
        (["algorithm={name: ppo, unfinished: keep}"], "critic"),
        (["start=runs/first/final"], "model.base"),
    ],
    ids=["nf4", "servers", "ppo", "start"],
)
def test_what_needs_an_adapter_is_refused(
    rlhf_command: Rlhf, policy_config: Path, tmp_path: Path, words: list[str], output: str
) -> None:
    result = rlhf_command("align-policy", policy_config, *WHOLE, *words, "--output", tmp_path / "run")
    assert result.exit_code == 2
    assert output in flat(result.output), result.output
    assert not (tmp_path / "run").exists()


def test_a_plan_is_refused_with_the_rule_of_thumb(rlhf_command: Rlhf, policy_config: Path) -> None:
    result = rlhf_command("plan", policy_config, *WHOLE, "--gpus", "1x80GB")
    assert result.exit_code == 2
    assert "20 bytes a parameter" in flat(result.output)
