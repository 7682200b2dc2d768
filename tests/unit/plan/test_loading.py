"""Memory while the base is loaded, on a GPU and on its machine."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf.config.reward import RewardConfig
from rlhf.plan.gpus import parse_gpus
from rlhf.plan.memory.loading import loading_host_bytes, loading_phase
from rlhf.plan.memory.phases import Tracer
from rlhf.plan.memory.shapes import load_shape
from rlhf.plan.memory.sharding import CONTEXT, NCCL
from rlhf.plan.request import Request

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


def test_host_memory() -> None:
    assert loading_host_bytes(request("4x24GB", "fsdp"), TRACER) == weights()
    assert loading_host_bytes(request("4x24GB", "ddp"), TRACER) == 4 * weights()
    quantized = weights(quantization="nf4")
    assert loading_host_bytes(request("4x24GB", "fsdp", "nf4"), TRACER) == 4 * quantized
    assert loading_host_bytes(request("1x24GB", "one", "nf4"), TRACER) == 0
