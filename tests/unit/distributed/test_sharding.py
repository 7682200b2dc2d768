from __future__ import annotations

import os

import pytest
import torch
from torch import nn
from transformers import TrainingArguments

from rlhf.core.errors import ConfigError, ModelError
from rlhf.distributed import sharding
from rlhf.training.arguments import single_device


@pytest.mark.parametrize(("use_fsdp", "version", "expected"), [("true", "2", True), ("false", "2", False)])
def test_fsdp_is_requested_by_the_launcher(
    monkeypatch: pytest.MonkeyPatch, use_fsdp: str, version: str, *, expected: bool
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", use_fsdp)
    monkeypatch.setenv("FSDP_VERSION", version)
    assert sharding.is_requested() is expected


def test_fsdp_1_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ConfigError, match="fsdp_version.* 1") as caught:
        sharding.is_requested()
    assert caught.value.exit_code == 2


def test_every_process_loads_4_bit_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    for quantization, expected in (("none", "true"), ("nf4", "false")):
        monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
        sharding.configure_loading(quantization)
        assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == expected


def test_passes_are_counted_before_the_first_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def all_gather(passes: int) -> list[int]:
        events.append("all_gather")
        return [passes, passes + 1]

    monkeypatch.setattr(sharding, "is_sharded", lambda _: True)
    monkeypatch.setattr(sharding.processes, "all_gather", all_gather)
    for batch, counted in sharding.lockstep("ab", None):
        events.append(f"{batch} {counted}")
    assert events == ["all_gather", "a True", "b True", "b False"]


def test_an_unsharded_model_is_left_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    model = nn.Linear(2, 2)
    sharding.shard(model)
    assert not sharding.is_sharded(model)
    assert sharding.full_tensor(model.weight) is model.weight
    assert list(sharding.lockstep("ab", model)) == [("a", True), ("b", True)]
    assert sharding.missing_passes(3, model) == 0
    sharding.set_parameters(model, {"bias": torch.tensor([3.0, 4.0])})
    assert model.bias.tolist() == [3.0, 4.0]
    assert sharding.shard_like(torch.ones(2, dtype=torch.float64), model.bias).dtype == torch.float64


def test_offloaded_shards_compute_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(2, 2)
    assert sharding.compute_device(model) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert sharding.compute_device(model) == torch.device("cuda", 3)


def test_a_process_that_sees_several_gpus_trains_on_one() -> None:
    arguments = TrainingArguments("unused", use_cpu=True)
    arguments._n_gpu = 4
    assert single_device(arguments).n_gpu == 1
    arguments._n_gpu = 0
    assert single_device(arguments).n_gpu == 0


def test_a_base_without_no_split_modules_is_refused() -> None:
    class Whole(nn.Module):
        _no_split_modules: list[str] | None = None

    with pytest.raises(ModelError) as caught:
        sharding.require_layers(Whole())
    assert "Whole" in caught.value.found
    Whole._no_split_modules = ["Layer"]
    sharding.require_layers(Whole())
