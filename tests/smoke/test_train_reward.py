"""`rlhf train-reward` through the real command, and what it leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from typer.testing import Result

Rlhf = Callable[..., Result]

EVERY_UPDATE = {
    "step", "stage", "loss/total", "reward/mean", "reward/std", "tokens/useful", "tokens/computed",
    "optimizer/lr", "optimizer/grad_norm", "time/step",
}  # fmt: skip
TERMS = {"loss/regression", "loss/bt", "reward/margin", "reward/accuracy"}


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, reward_config: Path, request: pytest.FixtureRequest
) -> tuple[Path, str]:
    """A run of two stages with the demo's benchmark, and what it printed."""
    from typer.testing import CliRunner

    from rlhf import cli

    folder = tmp_path_factory.mktemp("runs") / "reward"
    words = ["train-reward", str(reward_config), "benchmark=demo", "--output", str(folder)]
    result = CliRunner().invoke(cli.app, words, prog_name="rlhf")
    assert result.exit_code == 0, result.output
    return folder, result.output


def test_the_run_folder(run: tuple[Path, str]) -> None:
    folder, printed = run
    assert sorted(file.name for file in folder.iterdir() if file.name != ".lock") == [
        "checkpoints",
        "config.yaml",
        "drops.json",
        "environment.json",
        "eval.json",
        "eval_rows.jsonl",
        "final",
        "inputs.json",
        "metrics.jsonl",
        "report.html",
    ]
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    assert settings["output"] == str(folder) and settings["benchmark"] == "demo"
    drops = json.loads((folder / "drops.json").read_text())
    assert drops["read"] == 80 + 40 and sum(reason["count"] for reason in drops["dropped"].values()) > 0
    assert f"120 rows read, {drops['kept']} kept, {120 - drops['kept']} dropped" in printed
    assert str(folder / "report.html") in printed.replace("\n", "")
    assert (folder / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_metrics(run: tuple[Path, str]) -> None:
    rows = lines(run[0] / "metrics.jsonl")
    updates = [row for row in rows if "loss/total" in row]
    assert [(row["step"], row["stage"]) for row in updates] == [
        *[(step, "ratings") for step in range(1, 6)],
        *[(step, "pairs") for step in range(6, 10)],
    ]
    for row in updates:
        assert EVERY_UPDATE <= set(row) <= EVERY_UPDATE | TERMS
        # What a stage does not weigh is measured where it can be, and is no part of its loss.
        assert row["loss/total"] == row["loss/regression" if row["stage"] == "ratings" else "loss/bt"] > 0
        assert 0 < row["tokens/computed"] <= row["tokens/useful"]
    for row in updates[5:]:
        assert 0 <= row["reward/accuracy"] <= 1
        assert row["tokens/computed"] < row["tokens/useful"]  # the prompt of a pair is computed once
    assert [row["optimizer/lr"] for row in updates[:5]] == pytest.approx([5e-5, 1e-4, 1e-4, 1e-4, 1e-4])
    # One validation every second update of a stage, and one at its end; none twice.
    validations = [row for row in rows if "validation/loss" in row]
    assert [row["step"] for row in validations] == [2, 4, 5, 7, 9]
    assert all("validation/mse" in row for row in validations[:3])
    assert all("validation/accuracy" in row for row in validations[3:])


def test_eval_json(run: tuple[Path, str]) -> None:
    result = json.loads((run[0] / "eval.json").read_text())
    assert {"subsets", "sections", "overall", "length_baseline", "drops"} <= set(result)
    assert set(result["sections"]) == {"Requests", "Adversarial"}
    assert sum(subset["count"] for subset in result["subsets"].values()) == 126
    for subset in result["subsets"].values():
        assert 0 <= subset["accuracy"] <= 1
    assert result["overall"] == pytest.approx(sum(result["sections"].values()) / 2)
    ((source, held),) = result["held_out"]["subsets"].items()  # by source
    assert source.endswith("helpsteer2-preference.jsonl")
    assert len(lines(run[0] / "eval_rows.jsonl")) == 126 + held["count"]


def test_checkpoints_hold_no_pickle(run: tuple[Path, str]) -> None:
    checkpoints = run[0] / "checkpoints"
    assert sorted(entry.name for entry in checkpoints.iterdir()) == [
        "best-pairs.safetensors",
        "best-ratings.safetensors",
        "model",  # what all checkpoints share
        "step-7",
        "step-9",
    ]  # the last two
    suffixes = {file.suffix for file in checkpoints.rglob("*") if file.is_file()}
    assert suffixes == {".safetensors", ".json", ".jinja", ".md"}


def test_the_model_is_the_best_of_its_last_stage_and_scores(run: tuple[Path, str]) -> None:
    from reward.scorer import Scorer
    from rlhf.core.records import Message

    folder, _ = run
    head = "base_model.model.score.weight"
    final = load_file(folder / "final" / "adapter_model.safetensors")[head]
    trained = head.replace("weight", "modules_to_save.default.weight")
    best = load_file(folder / "checkpoints" / "best-pairs.safetensors")[trained]
    at_the_end = load_file(folder / "checkpoints" / "step-9" / "trainable.safetensors")[trained]
    assert final.equal(best)
    losses = {
        row["step"]: row["validation/loss"]
        for row in lines(folder / "metrics.jsonl")
        if "validation/loss" in row
    }
    assert final.equal(at_the_end) == (losses[9] < losses[7])
    scores = Scorer.load(folder / "final").score([(Message("user", "Hi."), Message("assistant", "Hello."))])
    assert set(scores[0].attributes) == {"helpfulness", "correctness", "coherence", "complexity", "verbosity"}


@pytest.mark.parametrize(
    ("dtype", "quantization"),
    [("bfloat16", "none"), ("bfloat16", "nf4"), pytest.param("float32", "nf4", marks=pytest.mark.slow)],
)
def test_other_number_formats(
    rlhf_command: Rlhf, reward_config: Path, tmp_path: Path, dtype: str, quantization: str
) -> None:
    words = [f"model.dtype={dtype}", f"model.quantization={quantization}", "head_start=0"]
    result = rlhf_command("train-reward", reward_config, *words, "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    updates = [row for row in lines(tmp_path / "run" / "metrics.jsonl") if "loss/total" in row]
    assert len(updates) == 9
    # The head starts at zero: every reward is 0 and every pair undecided, until the first update with a
    # learning rate.
    assert updates[0]["reward/mean"] == updates[0]["reward/std"] == 0
    weights = load_file(tmp_path / "run" / "final" / "adapter_model.safetensors")
    assert {str(weight.dtype) for weight in weights.values()} == {"torch.float32"}
    assert all(weight.abs().max() > 0 for name, weight in weights.items() if "lora_B" in name)
    card = json.loads((tmp_path / "run" / "final" / "reward.json").read_text())
    assert (card["dtype"], card["quantization"]) == (dtype, quantization)


def test_the_hybrid_objective_in_one_stage(rlhf_command: Rlhf, reward_config: Path, tmp_path: Path) -> None:
    stage = (
        "{name: hybrid, regression_weight: 0.5, preference_weight: 2.0, preference_loss: margin, "
        "max_steps: 2, batch_size: 8}"
    )
    demo = (
        "data={ratings: [{path: demo, format: helpsteer2, limit: 80}], "
        "preferences: [{path: demo, format: helpsteer2-preference, limit: 40}]}"
    )
    result = rlhf_command(
        "train-reward", reward_config, demo, f"stages=[{stage}]", "--output", tmp_path / "run"
    )
    assert result.exit_code == 0, result.output
    for row in lines(tmp_path / "run" / "metrics.jsonl"):
        if "loss/total" in row:
            assert row["loss/total"] == pytest.approx(
                0.5 * row["loss/regression"] + 2 * row["loss/bt"], rel=1e-5
            )


def test_a_dry_run_counts_and_leaves_nothing(rlhf_command: Rlhf, reward_config: Path, tmp_path: Path) -> None:
    result = rlhf_command("train-reward", reward_config, "--dry-run", "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "120 rows read" in result.stdout
    assert "stage ratings: 1 x regression;" in result.stdout
    assert (
        "stage pairs: 1 x scaled Bradley-Terry;" in result.stdout
        and "4 updates of 4 at 0.0001" in result.stdout
    )
    assert not (tmp_path / "run").exists()
