from __future__ import annotations

import importlib.util
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from rlhf.core.errors import ConfigError
from rlhf.distributed import processes, sharding, zero


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment variables that a launch file for ZeRO-3 sets."""
    variables = {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
        "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
        "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
        "ACCELERATE_CONFIG_DS_FIELDS": "zero_stage",
        "ACCELERATE_DEEPSPEED_ZERO3_INIT": "true",
        "DS_ACCELERATOR": "cpu",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(zero.CONFIG, "")


@pytest.mark.usefixtures("launched")
def test_zero_is_requested_by_the_launcher() -> None:
    assert sharding.is_requested()
    assert not sharding.fsdp_is_requested()


@pytest.mark.usefixtures("launched")
def test_deepspeed_gets_our_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    zero.prepare()
    zero.prepare()  # a second command of the same process
    from accelerate.utils import DeepSpeedPlugin

    plugin = DeepSpeedPlugin()
    assert plugin.zero_stage == 3
    assert plugin.zero3_init_flag is False
    assert (
        plugin.deepspeed_config["zero_optimization"]
        == json.loads(json.dumps(zero.SETTINGS))["zero_optimization"]
    )
    assert plugin.offload_optimizer_device == plugin.offload_param_device == "none"


@pytest.mark.parametrize(
    ("name", "value", "result"),
    [
        ("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2", "zero_stage.* 2"),
        ("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "cpu", "offload_param_device.* cpu"),
        ("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "nvme", "offload_optimizer_device.* nvme"),
        (zero.CONFIG, "other.json", "deepspeed_config_file.* other.json"),
    ],
)
@pytest.mark.usefixtures("launched")
def test_unsupported_options_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, result: str
) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=result) as caught:
        processes.init()
    assert caught.value.exit_code == 2
    assert "zero3.yaml" in caught.value.fix


@pytest.mark.usefixtures("launched")
def test_without_deepspeed_the_fix_names_fsdp2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="(?i)deepspeed") as caught:
        zero.prepare()
    assert "fsdp2.yaml" in caught.value.fix


@pytest.mark.usefixtures("launched")
def test_a_plain_model_is_not_sharded() -> None:
    assert not zero.is_sharded(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("index", "expected"), [(0, [0.0, 1.0, 2.0]), (1, [3.0, 4.0, 5.0]), (2, [6.0, 0.0, 0.0])]
)
def test_local_shards_have_equal_sizes(
    monkeypatch: pytest.MonkeyPatch, index: int, expected: list[float]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", str(index))
    parameter: Any = SimpleNamespace(ds_tensor=torch.empty(3))
    assert zero.local_shard(torch.arange(7.0), parameter).tolist() == expected


def test_a_step_refuses_a_gradient_that_is_not_finite() -> None:
    from rlhf.core.errors import DivergenceError

    boundaries = []
    engine = SimpleNamespace(
        set_gradient_accumulation_boundary=boundaries.append,
        step=lambda: None,
        optimizer=SimpleNamespace(overflow=True),
        get_global_grad_norm=lambda: float("inf"),
    )
    with pytest.raises(DivergenceError):
        zero.step(engine)
    assert boundaries == [True, False]
