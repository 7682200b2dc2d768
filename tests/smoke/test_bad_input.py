"""Mistakes a person can make with models, tokenizers and folders: one message, exit code 2, no stack
trace."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from typer.testing import Result

from reward.training.batches import TOO_LONG

Rlhf = Callable[..., Result]


def fix_of(message: str) -> str:
    """What a printed error tells the user to type."""
    return message.split("Do this: ")[1]


@pytest.fixture
def broken_base(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base that may be spoilt."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


@pytest.fixture
def broken_reward(tiny_reward: Path, tmp_path: Path) -> Path:
    """A copy of the tiny reward model that may be spoilt."""
    return Path(shutil.copytree(tiny_reward, tmp_path / "reward"))


@pytest.fixture
def refused(
    rlhf_command: Rlhf, reward_config: Path, policy_config: Path, tmp_path: Path
) -> Callable[..., str]:
    """Run a command that must be refused; returns its message in one line."""
    configs = {"train-reward": reward_config, "align-policy": policy_config}

    def run(command: str, *overrides: str, exit_code: int = 2) -> str:
        result = rlhf_command(command, configs[command], *overrides, "--output", tmp_path / "run")
        assert result.exit_code == exit_code, result.output
        assert result.stderr.count("Error: ") == 1
        assert "Traceback" not in result.output
        assert not (tmp_path / "run" / "final").exists()
        return " ".join(result.stderr.split("Error: ")[1].split())

    return run


def test_a_reward_model_of_another_base(
    refused: Callable[..., str], tiny_base: Path, other_base: Path
) -> None:
    message = refused("align-policy", f"model.base={other_base}")
    assert "reward model" in message and f"'{tiny_base}'" in message and f"'{other_base}'" in message
    assert f"model.base={tiny_base}" in fix_of(message)


def test_a_reward_model_that_is_not_there(refused: Callable[..., str]) -> None:
    message = refused("align-policy", "reward=runs/nowhere/final")
    assert message.startswith("runs/nowhere/final")
    assert "rlhf train-reward CONFIG.yaml" in fix_of(message)


def test_a_reward_model_without_its_head(refused: Callable[..., str], broken_reward: Path) -> None:
    file = broken_reward / "adapter_model.safetensors"
    save_file({name: w for name, w in load_file(file).items() if "score" not in name}, file)
    message = refused("align-policy", f"reward={broken_reward}")
    assert str(broken_reward) in message and "score.weight" in message


def test_a_reward_model_with_another_template(refused: Callable[..., str]) -> None:
    message = refused("align-policy", "model.template_date=1 Jan 2030")
    assert "chat template" in message and "reward model" in message
    assert "model.template_date='26 Jul 2024'" in fix_of(message)


@pytest.mark.parametrize("command", ["train-reward", "align-policy"])
def test_a_base_that_is_not_there(refused: Callable[..., str], command: str) -> None:
    message = refused(command, "model.base=/nowhere/at/all")
    assert "'/nowhere/at/all'" in message and "`embedded`" in message


@pytest.mark.parametrize("command", ["train-reward", "align-policy"])
def test_a_base_without_a_chat_template(refused: Callable[..., str], broken_base: Path, command: str) -> None:
    (broken_base / "chat_template.jinja").unlink()
    message = refused(command, f"model.base={broken_base}")
    assert f"'{broken_base}'" in message and "chat template" in message


@pytest.mark.parametrize("command", ["train-reward", "align-policy"])
@pytest.mark.parametrize(
    ("targets", "missing"),
    [
        ("[c_attn]", "c_attn"),
        ("[q_proj,v_porj]", "v_porj"),
        ("[q_proj,lm_head]", "lm_head"),
        ("qproj", "qproj"),
    ],
)
def test_adapter_targets_that_the_base_does_not_have(
    refused: Callable[..., str], command: str, targets: str, missing: str
) -> None:
    message = refused(command, f"adapter.targets={targets}")
    assert message.startswith("adapter.targets: ") and missing in message
    assert "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in message
    assert fix_of(message) == "adapter.targets=all-linear"


def test_a_max_length_beyond_the_context(refused: Callable[..., str]) -> None:
    message = refused("train-reward", "model.max_length=513")
    assert message.startswith("model.max_length") and "513" in message
    assert "model.max_length=512" in fix_of(message)


@pytest.mark.parametrize(
    ("overrides", "values"),
    [
        (
            ["rollouts.max_new_tokens=300"],
            ["data.max_prompt_tokens", "rollouts.max_new_tokens", "500", "model.max_length", "400"],
        ),
        (["rollouts.max_new_tokens=310", "model.max_length=512"], ["518 tokens", "512"]),
    ],
)
def test_prompt_and_answer_that_do_not_fit(
    refused: Callable[..., str], overrides: list[str], values: list[str]
) -> None:
    message = refused("align-policy", *overrides)
    assert all(value in message for value in values)


def test_prompts_that_are_all_too_long(refused: Callable[..., str]) -> None:
    message = refused("align-policy", "data.max_prompt_tokens=5")
    assert "60 rows read, 0 kept, 60 dropped" in message  # the drop report
    shortest = re.search(r"data\.max_prompt_tokens=(\d+) or more", message)
    assert shortest is not None
    assert int(shortest[1]) > 5
    assert "60 longer than data.max_prompt_tokens: demo prompts (train): row " in message


def test_responses_that_are_all_too_long(refused: Callable[..., str]) -> None:
    message = refused("train-reward", "model.max_length=8")
    assert "'ratings'" in message and "120 rows read" in message and TOO_LONG in message


@pytest.mark.parametrize("command", ["train-reward", "align-policy"])
def test_a_folder_in_use(refused: Callable[..., str], tmp_path: Path, command: str) -> None:
    import fcntl

    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as lock:
        lock.write(str(os.getpid()))
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        message = refused(command)
    assert str(tmp_path / "run") in message and str(os.getpid()) in message
    assert [file.name for file in (tmp_path / "run").iterdir()] == [".lock"]


@pytest.mark.parametrize("command", ["train-reward", "align-policy"])
def test_a_folder_that_holds_something(refused: Callable[..., str], tmp_path: Path, command: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("all of it")
    message = refused(command)
    assert str(tmp_path / "run") in message and "--resume" in message
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_padding_that_ends_an_answer_is_left_as_it_is(
    rlhf_command: Rlhf, reward_config: Path, broken_base: Path, tmp_path: Path
) -> None:
    """The mask decides where a score is read, so the tokenizer is saved as it came."""
    tokenizer = AutoTokenizer.from_pretrained(broken_base)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(broken_base)
    words = [f"model.base={broken_base}", "--output", tmp_path / "run"]
    result = rlhf_command("train-reward", reward_config, *words)
    assert result.exit_code == 0, result.output
    saved = AutoTokenizer.from_pretrained(tmp_path / "run" / "final")
    assert saved.pad_token == saved.eos_token == tokenizer.eos_token
    assert len(saved) == len(tokenizer)


def test_a_loss_that_explodes_is_a_failed_run(refused: Callable[..., str], tmp_path: Path) -> None:
    message = refused("train-reward", "stages.0.optimizer.learning_rate=1e30", exit_code=1)
    assert (
        "'ratings'" in message and "update 2." in message
    )  # the first loss is finite, and its step destroys the weights
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 1


def test_dropout_in_a_policy(refused: Callable[..., str]) -> None:
    message = refused("align-policy", "adapter.dropout=0.1")
    assert "adapter.dropout is 0.1" in message and message.endswith("set adapter.dropout=0")
