"""Memory while the base is loaded, on a GPU and on its machine."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf.config.policy import PolicyConfig
from rlhf.config.reward import RewardConfig
from rlhf.plan.estimate import make_plan
from rlhf.plan.gpus import parse_gpus
from rlhf.plan.memory.engine import weight_bytes
from rlhf.plan.memory.loading import host_memory, loading_phase
from rlhf.plan.memory.phases import Tracer
from rlhf.plan.memory.shapes import load_shape
from rlhf.plan.memory.sharding import CONTEXT, NCCL
from rlhf.plan.request import Assumptions, Request, row_of

TRACER = Tracer(load_shape("embedded"))
SHAPE = TRACER.shape
EMBEDDING = 49_152 * 576 * 2
"""Bytes of the largest weight of SmolLM2, in bfloat16."""


def request(gpus: str, strategy: str, quantization: str = "none") -> Request:
    config: Any = RewardConfig.model_validate(
        {
            "output": "unused",
            "model": {"base": "embedded", "max_length": 512, "quantization": quantization},
            "data": {"preferences": [{"path": "demo", "format": "helpsteer2-preference"}]},
            "stages": [{"name": "pairs", "preference_weight": 1}],
            "tokens_per_batch": 1024,
        }
    )
    return Request(config, parse_gpus(gpus), strategy)


def weights(strategy: str = "one", gpus: str = "1x24GB", quantization: str = "none") -> int:
    return loading_phase(request(gpus, strategy, quantization), TRACER).kinds["weights"]


def test_one_gpu_holds_the_base_and_no_copy() -> None:
    phase = loading_phase(request("1x24GB", "one"), TRACER)
    assert phase.kinds["gathered"] == 0
    assert phase.kinds["allowance"] == CONTEXT
    assert 134.5e6 * 2 < phase.kinds["weights"] < 134.6e6 * 2  # SmolLM2-135M has 134,515,008 parameters


def test_a_4_bit_weight_is_on_the_gpu_unquantized_once() -> None:
    phase = loading_phase(request("1x24GB", "one", "nf4"), TRACER)
    assert phase.kinds["gathered"] == EMBEDDING
    assert phase.kinds["weights"] < weights()


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp-offload"])
def test_shards_and_two_copies_of_the_weight_that_is_distributed(strategy: str) -> None:
    phase = loading_phase(request("4x24GB", strategy), TRACER)
    assert phase.kinds["gathered"] == 2 * EMBEDDING
    assert phase.kinds["allowance"] == CONTEXT + NCCL
    assert phase.kinds["weights"] == (0 if strategy == "fsdp-offload" else weights() // 4)


def test_a_gpu_too_small_for_the_weights_does_not_fit() -> None:
    assert not loading_phase(request("1x1GB", "one"), TRACER).fits
    assert loading_phase(request("1x24GB", "one"), TRACER).fits


def loading_bytes(gpus: str, strategy: str, quantization: str = "none") -> int:
    return host_memory(request(gpus, strategy, quantization), TRACER).loading


def test_host_memory_while_loading() -> None:
    assert loading_bytes("4x24GB", "fsdp") == weights()
    assert loading_bytes("2x4x24GB", "fsdp") == weights()  # on each machine
    assert loading_bytes("4x24GB", "ddp") == 4 * weights()
    assert loading_bytes("2x4x24GB", "ddp") == 4 * weights()
    assert loading_bytes("4x24GB", "fsdp-offload") == 2 * weights()
    quantized = weights(quantization="nf4")
    assert loading_bytes("4x24GB", "fsdp", "nf4") == 4 * quantized
    assert loading_bytes("1x24GB", "one", "nf4") == 0


def test_host_memory_of_offloaded_shards() -> None:
    """All of them, over the machines: weights, adapters, their gradients and two moments, in float32."""
    traced = TRACER(row_of(request("4x24GB", "fsdp-offload").config)).peaks["update"].kinds
    adapters = traced["adapters"]
    stored = weights() + 4 * adapters
    assert traced["gradients"] + traced["optimizer"] == 3 * adapters
    host = host_memory(request("4x24GB", "fsdp-offload"), TRACER)
    assert (host.training, host.need) == (stored, max(stored, 2 * weights()))
    assert host_memory(request("2x4x24GB", "fsdp-offload"), TRACER).training == stored // 2
    assert host_memory(request("4x24GB", "fsdp"), TRACER).training == 0


def test_host_memory_of_a_sleeping_engine() -> None:
    """An engine of each process on a machine keeps the base: SmolLM2's embedding is tied, so once."""
    config = PolicyConfig.model_validate(
        {
            "output": "unused",
            "model": {"base": "embedded"},
            "reward": [{"function": "gold"}],
            "data": {"prompts": [{"path": "demo"}], "max_prompt_tokens": 128},
            "rollouts": {"engine": "vllm", "sleep": True, "max_new_tokens": 128},
        }
    )
    awake = config.model_copy(update={"rollouts": config.rollouts.model_copy(update={"sleep": False})})
    gpus = parse_gpus("2x24GB")
    asleep = host_memory(Request(config, gpus, "ddp"), TRACER).training
    matrices = 2 * weight_bytes(SHAPE, 2, "none")
    adapter = TRACER(row_of(config)).peaks["update"].kinds["gradients"] // 2  # in bfloat16
    assert asleep == matrices + 2 * adapter
    assert host_memory(Request(awake, gpus, "ddp"), TRACER).training == 0


def test_a_machine_with_too_little_memory_does_not_fit() -> None:
    wanted = request("4x24GB", "ddp")
    need = 4 * weights()
    for available, fits in ((need, True), (need - 1, False), (None, True)):
        plan = make_plan(wanted, TRACER, Assumptions(), choose=False, host=available)
        assert plan.host is not None
        assert plan.host.need == need
        assert (plan.host.fits, plan.fits) == (fits, fits)
