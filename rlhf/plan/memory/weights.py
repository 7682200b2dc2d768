"""Bytes of a base's weights on a GPU, and in host memory while it is loaded. Imports no torch."""

from __future__ import annotations

from typing import Any

BYTES = {"bfloat16": 2.0, "float32": 4.0}
NF4_BYTES = 0.5 + 1 / 64 + 4 / 64 / 256
"""Bytes of a 4-bit weight with its share of an 8-bit scale (64 weights) and of a 32-bit one (256 scales)."""


def base_bytes(parameters: int, linear: int, dtype: str, quantization: str) -> int:
    """Bytes of a base with `linear` of its parameters in linear layers; only these are in 4 bits."""
    if quantization == "none":
        return round(parameters * BYTES[dtype])
    return round(linear * NF4_BYTES + (parameters - linear) * BYTES[dtype])


def largest_weight_bytes(shape: Any, itemsize: int) -> int:
    """Bytes of the largest weight of a base, unquantized: the embedding, or a matrix of its MLP.

    Args:
        shape: a transformers config.
    """
    return int(shape.hidden_size * max(shape.vocab_size, shape.intermediate_size) * itemsize)


def loading_bytes(weights: int, quantization: str, *, sharded: bool, offloaded: bool, processes: int) -> int:
    """Peak bytes of host memory on one machine while the base is loaded.

        bfloat16, not sharded    each process reads the base, then moves it to its GPU: processes x weights
        bfloat16, sharded        one process reads it, the others reserve memory without touching it: weights
        4 bits, not sharded      each weight is quantized on the GPU and stays there: 0
        4 bits, sharded          each process builds the base: processes x weights

    Args:
        weights: of the base as it is loaded, see `base_bytes`.
        sharded: FSDP2 with `fsdp_cpu_ram_efficient_loading` for bfloat16.
        offloaded: the shards stay in host memory, in addition.
        processes: on one machine.
    """
    if quantization == "none":
        loaded = weights if sharded else processes * weights
    else:
        loaded = processes * weights if sharded else 0
    return loaded + (weights if offloaded and quantization == "none" else 0)
