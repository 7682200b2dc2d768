"""State of the KL control survives an interruption: adaptive coefficient, best weights, KL budget."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from resuming import figures, killed_after
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from rlhf import cli


def start(config: Path, run: Path, *words: str) -> Result:
    command = ["align-policy", str(config), "--output", str(run), *words]
    return CliRunner().invoke(cli.app, command, prog_name="rlhf")


def killed_and_resumed(config: Path, run: Path, *words: str, after: int) -> Result:
    """Stop a run as if killed, after it has logged this update, and resume it."""
    with killed_after(after):
        start(config, run, *words)
    return start(config, run, *words, "--resume")


@pytest.mark.parametrize(
    "words",
    [
        # Two passes per update, and an adaptive coefficient that changes by a tenth per update.
        [
            "algorithm={name: rloo, epochs: 2, unfinished: keep, kl: {target: 1.0e-3, horizon: 12}}",
            "steps=5",
        ],
        # A KL loss, and a budget that stops the run after the checkpoint.
        pytest.param(
            [
                "algorithm={unfinished: keep, "
                "kl: {estimator: k2, placement: loss, target: 0.5, horizon: 12, budget: 0.05}}",
                "optimizer.learning_rate=2.0e-3",
                "steps=12",
            ],
            marks=pytest.mark.slow,
        ),
        # Rewards normalised by all answers so far, and an adaptive coefficient.
        pytest.param(
            [
                "algorithm={name: rloo, unfinished: keep, kl: {target: 1.0e-3, horizon: 12}}",
                "reward_shaping={normalise: running, clip: [-1, 1]}",
                "held_out_reward={function: gold, every: 2}",
                "steps=4",
            ],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["adaptive", "budget", "normalised"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    policy_config: Path, tmp_path: Path, words: list[str]
) -> None:
    unbroken, run = tmp_path / "unbroken", tmp_path / "run"
    result = start(policy_config, unbroken, *words)
    assert result.exit_code == 0, result.output
    rows = figures(unbroken)
    coefficients = [row["kl/coefficient"] for row in rows]
    assert len(set(coefficients)) == len(rows) > 3  # a wrong one after resume would show
    result = killed_and_resumed(policy_config, run, *words, after=3)  # checkpoint after 2
    assert result.exit_code == 0, result.output
    assert figures(run) == rows
    assert (run / "eval.json").read_text() == (unbroken / "eval.json").read_text()
    ours, theirs = (load_file(folder / "final" / "adapter_model.safetensors") for folder in (run, unbroken))
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    stopped = json.loads((run / "eval.json").read_text())["stopped"]
    assert (stopped is not None) == ("budget" in str(words)) == (len(rows) < int(words[-1].split("=")[1]))
