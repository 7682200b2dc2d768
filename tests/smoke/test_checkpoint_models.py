"""A checkpoint stands wherever `final/` does: it is exported, started from, scored with and answered with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from policy.evaluation.speaker import Speaker
from rlhf import cli
from rlhf.adapters.storage import read_policy
from rlhf.core.errors import ModelError
from rlhf.models.checkpoint_folder import model_folder
from rlhf.models.names import TRAINED_WHOLE

Rlhf = Callable[..., Result]


def run_of(command: str, config: Path, folder: Path, *words: str) -> Path:
    result = CliRunner().invoke(
        cli.app, [command, str(config), *words, "--output", str(folder)], prog_name="rlhf"
    )
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def policy_run(policy_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "policy"
    words = ["algorithm.name=ppo", "algorithm.critic={learning_rate: 1.0e-3}", "steps=2"]
    return run_of("align-policy", policy_config, folder, *words)


@pytest.fixture(scope="module")
def reward_run(reward_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ["stages.0.max_steps=2", "stages.1.max_steps=2", "data.validation_share=0"]
    return run_of("train-reward", reward_config, tmp_path_factory.mktemp("runs") / "reward", *words)


def content(file: Path) -> object:
    """A file's bytes; of a whole model's config, all but what identifies its weights."""
    if file.name != "config.json":
        return file.read_bytes()
    config = json.loads(file.read_text())
    assert len(config[TRAINED_WHOLE].pop("weights")) == 64
    assert len(config[TRAINED_WHOLE].pop("fingerprint")) == 16
    return config


def assert_same_model(checkpoint: Path, final: Path) -> None:
    """The last checkpoint is the model that was saved: every file, but for the weights' own."""
    folder = model_folder(checkpoint)
    files = {file.name for file in final.iterdir()}
    assert {file.name for file in folder.iterdir()} == files
    weights = {name for name in files if name.endswith(".safetensors")}
    (name,) = weights
    ours, theirs = load_file(folder / name), load_file(final / name)
    assert ours.keys() == theirs.keys() and all((ours[key] == theirs[key]).all() for key in ours)
    for other in files - weights - {"README.md"}:
        assert content(folder / other) == content(final / other), other


def test_the_last_checkpoint_is_the_model(policy_run: Path, reward_run: Path) -> None:
    assert_same_model(policy_run / "checkpoints" / "step-2", policy_run / "final")
    assert_same_model(reward_run / "checkpoints" / "step-4", reward_run / "final")
    assert model_folder(policy_run / "final") == policy_run / "final"


def test_weights_that_were_trained_whole(policy_config: Path, tmp_path: Path) -> None:
    run = run_of("align-policy", policy_config, tmp_path / "run", "adapter=null", "steps=1")
    assert_same_model(run / "checkpoints" / "step-1", run / "final")


def test_commands_take_a_policys_checkpoint(
    rlhf_command: Rlhf, policy_config: Path, policy_run: Path, tmp_path: Path
) -> None:
    checkpoint = policy_run / "checkpoints" / "step-2"
    result = rlhf_command("export", checkpoint, "--output", tmp_path / "exported")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "exported" / "model.safetensors").exists()
    run_of("align-policy", policy_config, tmp_path / "next", f"start={checkpoint}", "steps=1")
    adapter = Speaker.read(str(checkpoint)).adapter
    assert adapter is not None and adapter.r == 4


def test_commands_take_a_rewards_checkpoint(
    rlhf_command: Rlhf, reward_config: Path, policy_config: Path, reward_run: Path, tmp_path: Path
) -> None:
    checkpoint = reward_run / "checkpoints" / "step-4"
    rows = tmp_path / "rows.jsonl"
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    rows.write_text(json.dumps({"messages": messages}) + "\n")
    scores = []
    for place, model in enumerate((checkpoint, reward_run / "final")):
        output = tmp_path / f"{place}.jsonl"
        result = rlhf_command("score", model, "--input", rows, "--output", output)
        assert result.exit_code == 0, result.output
        scores.append(json.loads(output.read_text())["reward"])
    assert scores[0] == scores[1]
    words = [f"start={checkpoint}", "stages.0.max_steps=1", "stages.1.max_steps=1"]
    run_of("train-reward", reward_config, tmp_path / "next", *words)
    run_of("align-policy", policy_config, tmp_path / "policy", f"reward={checkpoint}", "steps=1")


def test_a_torn_checkpoint_and_one_without_its_run_are_refused(policy_run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone" / "step-2"
    shutil.copytree(policy_run / "checkpoints" / "step-2", alone)
    with pytest.raises(ModelError):
        read_policy(alone)
    torn = tmp_path / "torn"
    shutil.copytree(policy_run / "checkpoints", torn)
    (torn / "step-2" / "trainable.safetensors").write_bytes(b"half")
    with pytest.raises(ModelError):
        read_policy(torn / "step-2")
