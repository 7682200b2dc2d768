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


def test_a_reward_run_on_one_card(plan: Rlhf, reward_config: Path, tmp_path: Path) -> None:
    picture = tmp_path / "plan.png"
    result = plan(reward_config, "--gpus", "1xRTX4090", "--picture", picture)
    assert result.exit_code == 0, result.output
    for word in ("update", "validation", "activations", "It fits", "CUDA context", "tokens/s"):
        assert word in result.output
    assert picture.read_bytes().startswith(b"\x89PNG")


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
    told = json.loads(result.stdout)
    assert [phase["name"] for phase in told["phases"]] == ["rollouts", "scoring", "reference", "update"]
    for phase in told["phases"]:
        assert phase["total"] == sum(phase["kinds"].values())
        assert phase["fits"] == (phase["total"] <= phase["card"])
    assert told["fits"] is True
    assert told["parallel"] == "ddp"
    assert told["bill"]["updates"] == 3
    assert told["bill"]["dollars"] == pytest.approx(told["bill"]["hours"] * 3 * 2)
    assert "reference" in {phase["name"] for phase in told["bill"]["phases"]}


def test_a_run_that_does_not_fit_is_told_what_does(plan: Rlhf, reward_config: Path) -> None:
    told = json.loads(
        plan(
            reward_config,
            "model.base=meta-llama/Llama-3.1-8B-Instruct",
            "model.dtype=bfloat16",
            "--gpus",
            "1x16GB",
            "--json",
        ).stdout
    )
    assert told["fits"] is False
    ranked = [(not change["fits"], -change["saved"]) for change in told["changes"]]
    assert ranked == sorted(ranked)
    alone = {change["what"]: change["fits"] for change in told["changes"]}
    assert not alone["model.gradient_checkpointing=true"]
    assert not alone["model.quantization=nf4"]
    assert told["fits_with"]["changes"] == ["model.gradient_checkpointing=true", "model.quantization=nf4"]
    assert all(phase["fits"] for phase in told["fits_with"]["phases"])


@pytest.mark.parametrize(
    ("words", "found", "remedy"),
    [
        (("--gpus", "8xH1000"), "the card 'H1000' is not known", "H100-80GB"),
        (("--gpus", "1x0GB"), "cannot hold a run", "1x24GB"),
        (("--gpus", "1x24GB", "--parallel", "ddp"), "--parallel ddp with 1x24GB", "fsdp-offload"),
        (("--parallel", "tensor"), "'tensor' is not known", "zero3"),
        (
            ("model.base=nobody/unknown",),
            "'nobody/unknown' is not known on this machine",
            "Llama-3.1-8B-Instruct",
        ),
        (("--picture", "plan.gif"), "plan.gif", ".svg"),
        (("model.rank=3",), "rank", "model"),
    ],
)
def test_mistakes(plan: Rlhf, reward_config: Path, words: tuple[str, ...], found: str, remedy: str) -> None:
    result = plan(reward_config, *words)
    assert result.exit_code == 2, result.output
    said = " ".join(result.stderr.split())
    assert found in said
    assert remedy in said
    assert "Traceback" not in result.output


@pytest.mark.slow
def test_the_plans_of_the_configs_are_up_to_date() -> None:
    from rlhf.plan.catalogue import FILE, lines

    root = Path(__file__).parents[2]
    written = (root / FILE).read_text("utf-8")
    assert written == "\n".join(lines(root)), "python -m rlhf.plan.catalogue"
