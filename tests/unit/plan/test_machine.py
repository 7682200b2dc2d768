"""A run on a GPU that is not there: what it takes, and what it says when memory runs out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rlhf.config.reward import RewardConfig
from rlhf.core.errors import RunError
from rlhf.models import placement
from rlhf.plan import machine
from rlhf.plan.gpus import parse_gpus
from rlhf.runs.gpu_memory import DESCRIPTIONS, GpuMemoryError, phase


@pytest.fixture
def config(tiny_base: Path) -> RewardConfig:
    return RewardConfig.model_validate(
        {
            "output": "unused",
            "model": {"base": str(tiny_base), "max_length": 256},
            "data": {"preferences": [{"path": "demo", "format": "helpsteer2-preference"}]},
            "stages": [{"name": "pairs", "preference_weight": 1}],
        }
    )


def test_without_a_gpu_a_config_stays(config: RewardConfig) -> None:
    assert machine.fit_to_machine(config) is config


def test_on_a_gpu_the_chosen_settings_are_printed(
    config: RewardConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "this_cluster", lambda: parse_gpus("1x24GB"))
    assert machine.fit_to_machine(config).tokens_per_batch == 16_384
    assert "tokens_per_batch=16384" in capsys.readouterr().out


def test_a_gpu_too_small_for_the_config_is_a_warning_with_the_first_change(
    config: RewardConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tiny model takes the CUDA context's GiB, more than a GPU of 1 GB has."""
    monkeypatch.setattr(machine, "this_cluster", lambda: parse_gpus("1x1GB"))
    machine.fit_to_machine(config)
    warning = capsys.readouterr().err
    assert "of 0.9 GiB on 1x1GB" in warning
    assert "First change:" in warning
    monkeypatch.setattr(machine, "this_cluster", lambda: parse_gpus("1x24GB"))
    machine.fit_to_machine(config)
    assert capsys.readouterr().err == ""


def test_gpus_that_this_torch_cannot_use_stop_a_run(
    config: RewardConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else a driver too old for torch would let a large model train on the CPU."""
    old = "The NVIDIA driver on your system is too old (found version 12040)."

    def init() -> None:
        raise RuntimeError(f"{old} Please update your GPU driver")

    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(placement, "GPU_FILES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert machine.fit_to_machine(config) is config  # no GPU
    (tmp_path / "0000:01:00.0").mkdir()
    with pytest.raises(RunError) as caught:
        machine.fit_to_machine(config)
    assert old in caught.value.found
    assert "CUDA_VISIBLE_DEVICES=" in caught.value.fix
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # on purpose
    assert machine.fit_to_machine(config) is config
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.version, "cuda", None)  # a build for CPUs
    assert machine.fit_to_machine(config) is config


def test_memory_that_runs_out_names_phase_plan_and_change(
    config: RewardConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    @phase("update")
    def step() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(GpuMemoryError) as plain, machine.explained(config):
        step()
    assert plain.value.phase == "update"
    monkeypatch.setattr(machine, "this_cluster", lambda: parse_gpus("1x1GB"))
    with pytest.raises(GpuMemoryError) as caught, machine.explained(config):
        step()
    error = caught.value
    assert (error.phase, error.exit_code) == ("update", 1)
    assert "Tried to allocate" in error.found
    assert "of 0.9 GiB" in error.found
    assert error.fix


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_every_phase_has_a_plan_and_a_first_change(
    config: RewardConfig, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The test above computes the changes, which do not depend on the phase."""
    monkeypatch.setattr(machine, "this_cluster", lambda: parse_gpus("1x1GB"))
    first = SimpleNamespace(what="model.quantization=nf4")
    monkeypatch.setattr(machine, "single_changes", lambda *_: [first])
    with pytest.raises(GpuMemoryError) as caught, machine.explained(config), phase(name):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert caught.value.phase == name
    assert "The plan expected" in caught.value.found
    assert caught.value.fix == first.what


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "NCCL error: unhandled cuda error. Last error: Cuda failure 2 'out of memory'",
    ],
)
def test_memory_that_runs_out_beside_torchs_allocator(config: RewardConfig, message: str) -> None:
    with pytest.raises(GpuMemoryError) as caught, machine.explained(config):
        raise RuntimeError(message)
    assert (caught.value.phase, caught.value.exit_code) == ("run", 1)


def test_the_innermost_phase_counts() -> None:
    with pytest.raises(GpuMemoryError) as caught, phase("update"), phase("scoring"):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert caught.value.phase == "scoring"


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes"), phase("update"):
        raise RuntimeError("shapes")


def test_a_base_that_cannot_be_planned_stops_no_run(
    config: RewardConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as one that is yet to be downloaded."""
    monkeypatch.setattr(machine, "this_cluster", lambda: parse_gpus("1x24GB"))
    model = config.model.model_copy(update={"base": "nobody/unknown"})
    unknown = config.model_copy(update={"model": model})
    assert machine.fit_to_machine(unknown) is unknown
    assert "nobody/unknown" in capsys.readouterr().out
    with pytest.raises(GpuMemoryError) as caught, machine.explained(unknown), phase("loading"):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert caught.value.phase == "loading"
