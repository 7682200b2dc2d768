"""Bytes of a base's weights, on a GPU and in a machine's memory while it is loaded: what the plan and the doctor both count with. No torch."""

from __future__ import annotations

BYTES = {"bfloat16": 2.0, "float32": 4.0}
NF4_BYTES = 0.5 + 1 / 64 + 4 / 64 / 256
"""A weight in 4 bits, its share of a scale of 8 bits for 64 weights, and of one of 32 bits for 256 such scales."""


def base_bytes(parameters: int, linear: int, dtype: str, quantization: str) -> int:
    """A base of so many parameters, so many of them in linear layers; embeddings and head are never in 4 bits."""
    if quantization == "none":
        return round(parameters * BYTES[dtype])
    return round(linear * NF4_BYTES + (parameters - linear) * BYTES[dtype])


def loading_bytes(weights: int, quantization: str, *, sharded: bool, offloaded: bool, processes: int) -> int:
    """The memory of one machine that loading takes at most, in bytes.

        bfloat16, not sharded    each process reads the base into memory, then moves it to its GPU: processes x weights
        bfloat16, sharded        one process reads it, the others reserve memory without touching it: weights
        4 bits, not sharded      each weight is quantized on the GPU and stays there: nothing
        4 bits, sharded          each process makes the base for itself: processes x weights

    Args:
        weights: of the base as it is loaded, see `base_bytes`.
        sharded: FSDP2 with `fsdp_cpu_ram_efficient_loading` for bfloat16.
        offloaded: the shards stay in the machine's memory afterwards, beside what is loaded.
        processes: on one machine.
    """
    if quantization == "none":
        loaded = weights if sharded else processes * weights
    else:
        loaded = processes * weights if sharded else 0
    return loaded + (weights if offloaded and quantization == "none" else 0)
