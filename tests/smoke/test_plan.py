"""`rlhf plan` as typed: the table, JSON, the picture, and mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Rlhf = Callable[..., Result]


@pytest.fixture
def plan(rlhf_command: Rlhf) -> Callable[..., Result]:
    return lambda *words: rlhf_command("plan", *words)


def test_a_reward_run_on_one_gpu(plan: Rlhf, reward_config: Path, tmp_path: Path) -> None:
    picture = tmp_path / "plan.png"
    result = plan(reward_config, "--gpus", "1xRTX4090", "--picture", picture)
    assert result.exit_code == 0, result.output
    for word in ("update", "validation", "activations", "It fits", "CUDA context", "tokens/s"):
        assert word in result.output
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_machine_with_too_little_memory(plan: Rlhf, reward_config: Path) -> None:
    """16 GB of weights in bfloat16, read by each process of one machine: 30 GiB of two."""
    words = ("model.base=meta-llama/Llama-3.1-8B-Instruct", "model.dtype=bfloat16", "--gpus", "2xH100")
    for memory, fits in (("20", False), ("40", True)):
        result = plan(reward_config, *words, "--host-memory", memory)
        assert result.exit_code == 0, result.output
        assert ("It fits" in result.output) is fits
        assert ("--parallel fsdp" in result.output) is not fits
    data = json.loads(plan(reward_config, *words, "--json").stdout)
    assert data["host"]["available"] is None
    assert 27.5 < data["host"]["loading"] / 2**30 < 30


def test_a_policy_run_as_json(plan: Rlhf, policy_config: Path, tmp_path: Path) -> None:
    result = plan(
        policy_config,
        "rollouts.engine=vllm",
        "--gpus",
        "2xH100",
        "--rollout-gpus",
        "1xL40S",
        "--price",
        "2",
        "--json",
    )
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert [phase["name"] for phase in data["phases"]] == [
        "rollouts",
        "scoring",
        "log-probabilities",
        "update",
    ]
    for phase in data["phases"]:
        assert phase["total"] == sum(phase["kinds"].values())
        assert phase["fits"] == (phase["total"] <= phase["card"])
    assert data["fits"] is True
    assert data["parallel"] == "ddp"
    assert data["bill"]["updates"] == 3
    assert data["bill"]["dollars"] == pytest.approx(data["bill"]["hours"] * 3 * 2)
    assert "log-probabilities" in {phase["name"] for phase in data["bill"]["phases"]}


def test_a_run_that_does_not_fit_gets_changes_that_do(plan: Rlhf, reward_config: Path) -> None:
    data = json.loads(
        plan(
            reward_config,
            "model.base=meta-llama/Llama-3.1-8B-Instruct",
            "model.dtype=bfloat16",
            "model.max_length=2048",
            "--gpus",
            "1x16GB",
            "--json",
        ).stdout
    )
    assert data["fits"] is False
    ranked = [(not change["fits"], -change["saved"]) for change in data["changes"]]
    assert ranked == sorted(ranked)
    alone = {change["what"]: change["fits"] for change in data["changes"]}
    assert not alone["model.gradient_checkpointing=true"]
    assert not alone["model.quantization=nf4"]
    assert data["fits_with"]["changes"] == ["model.gradient_checkpointing=true", "model.quantization=nf4"]
    assert all(phase["fits"] for phase in data["fits_with"]["phases"])


@pytest.mark.parametrize(
    ("words", "actual", "fix"),
    [
        (("--gpus", "8xH1000"), "'H1000'", "H100-80GB"),
        (("--gpus", "1x0GB"), "0GB", "1x24GB"),
        (("--gpus", "1x24GB", "--parallel", "ddp"), "--parallel ddp with 1x24GB", "fsdp-offload"),
        (("--parallel", "tensor"), "'tensor'", "fsdp-offload"),
        (
            ("model.base=nobody/unknown",),
            "'nobody/unknown'",
            "Llama-3.1-8B-Instruct",
        ),
        (("--gpus", "1x-24GB"), "'-24GB'", "a plain size"),
        (("--gpus", "0xH100"), "count of 0", "1xH100"),
        (("--gpus", "3x1xL40S"), "stages.0.batch_size", "stages.0.batch_size=6"),
        (("--picture", "plan.gif"), "plan.gif", ".svg"),
        (("model.rank=3",), "rank", "model"),
    ],
)
def test_mistakes(plan: Rlhf, reward_config: Path, words: tuple[str, ...], actual: str, fix: str) -> None:
    result = plan(reward_config, *words)
    assert result.exit_code == 2, result.output
    printed = " ".join(result.stderr.split())
    assert actual in printed
    assert fix in printed
    assert "Traceback" not in result.output


SERVERS = ("rollouts.engine=servers", "rollouts.servers=[http://a:8000, http://b:8000]")


def test_servers_get_the_fewest_gpus_that_hold_them(plan: Rlhf, policy_config: Path) -> None:
    data = json.loads(plan(policy_config, *SERVERS, "--gpus", "1xH100", "--json").stdout)
    assert data["rollout_gpus"] == "2x1xH100-80GB"
    assert data["rollout_parallel"] == 1
    rollouts, *others = data["phases"]
    assert set(rollouts["kinds"]) == {"engine", "KV cache", "allowance"}
    assert all("engine" not in phase["kinds"] for phase in others)


def test_servers_get_equal_numbers_of_gpus(plan: Rlhf, policy_config: Path) -> None:
    result = plan(policy_config, *SERVERS, "--rollout-gpus", "4xL40S")
    assert "rollouts on 4xL40S-48GB, a vLLM server on 2 GPUs (--tensor-parallel-size)" in " ".join(
        result.stdout.split()
    )
    result = plan(policy_config, *SERVERS, "--rollout-gpus", "3xL40S")
    assert result.exit_code == 2
    printed = " ".join(result.stderr.split())
    assert "--rollout-gpus 3xL40S-48GB" in printed and "rollouts.servers" in printed


def test_the_critic_has_a_separate_phase(plan: Rlhf, policy_config: Path) -> None:
    data = json.loads(plan(policy_config, "algorithm.name=ppo", "--gpus", "1xH100", "--json").stdout)
    assert [phase["name"] for phase in data["phases"]][-2:] == ["update", "critic"]
    hours = {speed["name"]: speed["hours"] for speed in data["bill"]["phases"]}
    assert 0 < hours["critic"] < hours["update"]


def test_reward_models_outside_the_base_have_no_pass_and_are_listed(plan: Rlhf, policy_config: Path) -> None:
    result = plan(policy_config, "reward=[{function: gold}, {classifier: some/model}]", "--gpus", "1xH100")
    printed = " ".join(result.stdout.split())
    assert "scoring" not in printed
    assert "Not counted: the weights of some/model" in printed
