"""`rlhf doctor`: what it prints, and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from rlhf.doctor import machine_facts as machine
from rlhf.doctor.facts import Torch

Rlhf = Callable[..., Result]


@pytest.fixture
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No library is tried out, which takes seconds each."""
    monkeypatch.setattr(machine, "torch", lambda: Torch(None, None, (), None))
    monkeypatch.setattr(machine, "tried", lambda names, say: {"bitsandbytes": "works", "vllm": "works"})


@pytest.mark.usefixtures("known_machine")
def test_the_machine_alone(rlhf: Rlhf) -> None:
    result = rlhf("doctor")
    assert result.exit_code == 0, result.output
    assert "  ok           Versions       torch 2." in result.stdout
    assert "To check the model, data and output of a config: rlhf doctor" in result.stdout


@pytest.mark.usefixtures("known_machine")
def test_a_config(rlhf: Rlhf, reward_config: Path) -> None:
    result = rlhf("doctor", str(reward_config), "--output", "here")
    assert result.exit_code == 0, result.output
    assert "data.ratings.0: " in result.stdout
    assert "here is free" in result.stdout
    assert "vLLM " not in result.stdout  # a reward run samples nothing


@pytest.mark.usefixtures("known_machine")
def test_a_problem_is_exit_code_1_with_its_fix(rlhf: Rlhf, reward_config: Path) -> None:
    result = rlhf("doctor", str(reward_config), "model.base=./nowhere", "--output", "here")
    assert result.exit_code == 1
    assert "  problem      Base           " in result.stdout
    assert "Do this: " in result.stdout
    assert "1 problem" in result.stdout.splitlines()[-1]


@pytest.mark.usefixtures("known_machine")
def test_json(rlhf: Rlhf, reward_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    result = rlhf("doctor", str(reward_config), "model.max_length=513", "--json", "--output", "here")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["problems"] == 1
    (problem,) = [line for line in report["checks"] if line["verdict"] == "problem"]
    assert problem == {
        "group": "Model",
        "name": "Length",
        "verdict": "problem",
        "found": "model.max_length is 513, the base's context 512",
        "fix": "model.max_length=512",
    }
    assert "hf_secret" not in result.output


def test_a_bad_config_is_exit_code_2(rlhf: Rlhf, reward_config: Path) -> None:
    result = rlhf("doctor", str(reward_config), "model.dtype=fp16")
    assert result.exit_code == 2
    assert "model.dtype" in result.stderr and "fp16" in result.stderr
    result = rlhf("doctor", "gone.yaml")
    assert result.exit_code == 2
    assert "gone.yaml" in result.stderr


def test_nothing_is_made_up(rlhf: Rlhf, reward_config: Path) -> None:
    """The libraries of this machine, tried in processes of their own."""
    result = rlhf("doctor", str(reward_config), "--output", "here", "--json")
    assert result.exit_code == 0, result.output
    checks = {line["name"]: line for line in json.loads(result.stdout)["checks"]}
    assert checks["bitsandbytes"]["verdict"] == "ok"
    assert "usual error" in checks["bitsandbytes"]["found"]
