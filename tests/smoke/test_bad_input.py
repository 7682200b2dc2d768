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

Rlhf = Callable[..., Result]


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
    assert message.startswith(f"The reward model was trained on '{tiny_base}'")
    assert f"this base is '{other_base}'" in message
    assert "Allowed: a reward model on the same base" in message
    assert f"Do this: set model.base={tiny_base}" in message


def test_a_reward_model_that_is_not_there(refused: Callable[..., str]) -> None:
    message = refused("align-policy", "reward=runs/nowhere/final")
    assert message.startswith("runs/nowhere/final is not a reward model of this project")
    assert "Do this: rlhf train-reward CONFIG.yaml" in message


def test_a_reward_model_without_its_head(refused: Callable[..., str], broken_reward: Path) -> None:
    file = broken_reward / "adapter_model.safetensors"
    save_file({name: w for name, w in load_file(file).items() if "score" not in name}, file)
    message = refused("align-policy", f"reward={broken_reward}")
    assert "contains 0 reward heads. Allowed: one weight named …score.weight" in message


def test_a_reward_model_with_another_template(refused: Callable[..., str]) -> None:
    message = refused("align-policy", "model.template_date=1 Jan 2030")
    assert message.startswith("The chat template differs from the one the reward model was trained with")
    assert "set model.template_date='26 Jul 2024'" in message


@pytest.mark.parametrize("command", ["train-reward", "align-policy"])
def test_a_base_that_is_not_there(refused: Callable[..., str], command: str) -> None:
    message = refused(command, "model.base=/nowhere/at/all")
    assert "'/nowhere/at/all'" in message and "Allowed: `embedded`, a folder" in message


@pytest.mark.parametrize("command", ["train-reward", "align-policy"])
def test_a_base_without_a_chat_template(refused: Callable[..., str], broken_base: Path, command: str) -> None:
    (broken_base / "chat_template.jinja").unlink()
    message = refused(command, f"model.base={broken_base}")
    assert message.startswith(f"The tokenizer of '{broken_base}' has no chat template.")


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
    assert message.startswith(f"adapter.targets: this model has no layer {missing}.")
    assert (
        "Allowed: `all-linear`, or some of down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
        in message
    )
    assert "Do this: adapter.targets=all-linear" in message


def test_a_max_length_beyond_the_context(refused: Callable[..., str]) -> None:
    message = refused("train-reward", "model.max_length=513")
    assert message.startswith("model.max_length is 513. Allowed: at most 512, the context of")
    assert "Do this: model.max_length=512" in message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["rollouts.max_new_tokens=300"],
            "data.max_prompt_tokens + rollouts.max_new_tokens = 500. Allowed: at most model.max_length = 400",
        ),
        (
            ["rollouts.max_new_tokens=310", "model.max_length=512"],
            "Prompt, answer and closing tokens may reach 518 tokens. Allowed: at most 512, the context of",
        ),
    ],
)
def test_prompt_and_answer_that_do_not_fit(
    refused: Callable[..., str], overrides: list[str], message: str
) -> None:
    assert refused("align-policy", *overrides).startswith(message)


def test_prompts_that_are_all_too_long(refused: Callable[..., str]) -> None:
    message = refused("align-policy", "data.max_prompt_tokens=5")
    assert message.startswith("0 prompts are left") and "60 rows read, 0 kept, 60 dropped" in message
    shortest = re.search(r"data\.max_prompt_tokens=(\d+) or more", message)
    assert shortest is not None
    assert int(shortest[1]) > 5
    assert "60 longer than data.max_prompt_tokens: synthetic: " in message


def test_responses_that_are_all_too_long(refused: Callable[..., str]) -> None:
    message = refused("train-reward", "model.max_length=8")
    assert message.startswith("Stage 'ratings' has nothing to learn from. 120 rows read")
    assert "longer than model.max_length" in message


@pytest.mark.parametrize("command", ["train-reward", "align-policy"])
def test_a_folder_in_use(refused: Callable[..., str], tmp_path: Path, command: str) -> None:
    import fcntl

    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as lock:
        lock.write(str(os.getpid()))
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        message = refused(command)
    assert message.startswith(
        f"the output folder {tmp_path / 'run'} is in use by another run (process {os.getpid()})"
    )
    assert [file.name for file in (tmp_path / "run").iterdir()] == [".lock"]


@pytest.mark.parametrize("command", ["train-reward", "align-policy"])
def test_a_folder_that_holds_something(refused: Callable[..., str], tmp_path: Path, command: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("all of it")
    assert "is not empty Allowed: a new or an empty folder" in refused(command)
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
    assert message.startswith("The loss of stage 'ratings' is ")
    assert "at update 2." in message  # the first loss is finite, and its step destroys the weights
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 1


def test_dropout_in_a_policy(refused: Callable[..., str]) -> None:
    message = refused("align-policy", "adapter.dropout=0.1")
    assert "adapter.dropout must be 0 for a policy" in message
