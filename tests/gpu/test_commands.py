"""Both commands on a GPU: in bfloat16 and in 4 bits, with every way to sample, killed and resumed, sharded by
one process.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
Rows = Callable[[Path], list[dict[str, Any]]]
RESUMED_APART = 0.02
"""Relative difference of a loss after a resume: kernels on a GPU add in an order of their own (atomics)."""


Run = Callable[..., None]


@pytest.fixture(scope="session")
def run(device: str, timeout: float) -> Run:
    """Run a command in a process of its own, or through a launch file of `configs/launch/`.

    On a CPU a command runs in this process where it can, which saves the imports.
    """

    def start(
        command: str,
        config: Path,
        *words: str,
        launch: str | None = None,
        folder: Path | None = None,
        alone: bool = False,
    ) -> None:
        words = (command, str(config), *words)
        if device == "cpu" and launch is None and not alone:
            from rlhf import cli

            result = CliRunner().invoke(cli.app, list(words), prog_name="rlhf")
            assert result.exit_code == 0, result.output[-4000:]
            return
        launcher = [] if launch is None or folder is None else _launcher(launch, folder, device)
        done = subprocess.run(
            [sys.executable, "-m", *launcher, "rlhf.cli", *words],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": _python_path(), "GLOO_SOCKET_IFNAME": "lo"},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]

    return start


def _python_path() -> str:
    """This folder, and what was on the path: wheels may be unpacked there."""
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


def _launcher(launch: str, folder: Path, device: str) -> list[str]:
    """accelerate's arguments: one process with NCCL on a GPU, two with gloo on a CPU, where one is not
    sharded."""
    settings = yaml.safe_load((ROOT / "configs" / "launch" / launch).read_text("utf-8"))
    settings |= {"num_processes": 1} if device == "cuda" else {"num_processes": 2, "use_cpu": True}
    if device == "cpu":  # offload pins memory, which needs a GPU
        settings["fsdp_config"]["fsdp_offload_params"] = False
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        settings |= {"main_process_ip": "127.0.0.1", "main_process_port": free.getsockname()[1]}
    file = folder / launch
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return ["accelerate.commands.launch", "--config_file", str(file), "-m"]


def base_words(base: Path, quantization: str = "none") -> tuple[str, ...]:
    return (f"model.base={base}", "model.dtype=bfloat16", f"model.quantization={quantization}")


@pytest.fixture(scope="session")
def trained(
    run: Run, gpu_base: Path, reward_config: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The `final/` folder of a reward model on the base, by its quantization; each is trained once."""
    made: dict[str, Path] = {}

    def final(quantization: str) -> Path:
        if quantization not in made:
            folder = tmp_path_factory.mktemp("reward") / quantization
            run("train-reward", reward_config, *base_words(gpu_base, quantization), "--output", str(folder))
            made[quantization] = folder
        return made[quantization] / "final"

    return final


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_reward_training(trained: Callable[[str], Path], rows: Rows, quantization: str) -> None:
    lines = rows(trained(quantization).parent)
    assert sum("loss/total" in line for line in lines) == 9
    assert all(0 < line["loss/total"] < 20 for line in lines if "loss/total" in line)


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        ("none", ["rollouts.continuous_batching=true"]),
        ("none", ["rollouts.continuous_batching=false"]),
        ("nf4", ["rollouts.continuous_batching=true"]),
        ("none", ["algorithm={name: ppo, critic: {learning_rate: 1.0e-3, warmup_steps: 1}}"]),
        ("none", ["adapter=null", "optimizer.learning_rate=1.0e-4"]),
    ],
    ids=["paged", "padded", "nf4", "ppo", "whole"],
)
def test_alignment(
    run: Run, trained: Callable[[str], Path], gpu_base: Path, policy_config: Path, rows: Rows, tmp_path: Path,
    quantization: str, words: list[str],
) -> None:  # fmt: skip
    reward = f"reward={trained(quantization)}"
    base = base_words(gpu_base, quantization)
    run("align-policy", policy_config, reward, *base, *words, "--output", str(tmp_path / "run"))
    lines = rows(tmp_path / "run")
    assert len(lines) == 3
    assert lines[0]["kl/abs_mean"] <= 0.02


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_alignment_with_vllm(
    device: str, run: Run, trained: Callable[[str], Path], gpu_base: Path, policy_config: Path, rows: Rows,
    tmp_path: Path, quantization: str,
) -> None:  # fmt: skip
    pytest.importorskip("vllm", reason="vllm is not installed")
    if quantization == "nf4":
        if device == "cpu":
            pytest.skip("vLLM has no 4-bit weights on a CPU")
        pytest.importorskip("vllm_bnb_plugin", reason="vllm-bnb-plugin is not installed")
    on_gpu = ("rollouts.gpu_memory_share=0.3", "rollouts.sleep=true") if device == "cuda" else ()
    words = ("rollouts.engine=vllm", "rollouts.logprob_bound=0.2", *on_gpu)
    reward = f"reward={trained(quantization)}"
    base = base_words(gpu_base, quantization)
    output = ("--output", str(tmp_path / "run"))
    run("align-policy", policy_config, reward, *base, *words, *output, alone=True)
    assert all(line["engine/logprob_difference"] < 0.1 for line in rows(tmp_path / "run"))


def test_a_resumed_run_agrees_to_rounding(
    run: Run, gpu_base: Path, reward_config: Path, rows: Rows, tmp_path: Path
) -> None:
    """The last stage ends after its checkpoint at two updates, and continues to four."""
    words = (
        *base_words(gpu_base),
        "stages.1.optimizer.schedule=constant",
    )  # no rate depends on the number of updates
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    run("train-reward", reward_config, *words, "stages.1.max_steps=4", "--output", str(straight))
    run("train-reward", reward_config, *words, "stages.1.max_steps=2", "--output", str(resumed))
    run("train-reward", reward_config, *words, "stages.1.max_steps=4", "--resume", "--output", str(resumed))
    losses = [
        [line["loss/total"] for line in rows(folder) if line.get("stage") == "pairs"]
        for folder in (straight, resumed)
    ]
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], rel=RESUMED_APART)


@pytest.mark.parametrize(("launch", "quantization"), [("fsdp2.yaml", "none"), ("fsdp2-qlora.yaml", "nf4")])
def test_a_sharded_base(
    run: Run, trained: Callable[[str], Path], gpu_base: Path, reward_config: Path, rows: Rows, tmp_path: Path,
    launch: str, quantization: str,
) -> None:  # fmt: skip
    """The same losses as without sharding; `fsdp2-qlora.yaml` offloads."""
    words = (*base_words(gpu_base, quantization), "--output", str(tmp_path / "run"))
    run("train-reward", reward_config, *words, launch=launch, folder=tmp_path)
    both = [
        [line["loss/total"] for line in rows(folder) if "loss/total" in line]
        for folder in (tmp_path / "run", trained(quantization).parent)
    ]
    assert both[0] == pytest.approx(both[1], rel=RESUMED_APART)
