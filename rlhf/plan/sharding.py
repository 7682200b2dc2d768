"""What one card of several holds: the trace's bytes under DDP or FSDP2, and what the cards say to one another.

Formulas are per card, for n cards. `gathered` is what is whole for a moment; `buffers` is what the engines keep for themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rlhf.plan.ledger import ACTIVATIONS
from rlhf.plan.trace import ADAPTERS, GRADIENTS, OPTIMIZER, WEIGHTS, Trace

GATHERED, BUFFERS, ALLOWANCE = "gathered", "buffers", "allowance"

CONTEXT = 2**30
"""CUDA's context, its kernels and cuBLAS's workspace. An assumption: 0.5 GiB on recent drivers, which load kernels lazily, to
1.3 GiB (transformers' documentation, "Model training anatomy")."""
NCCL = 2**29
"""NCCL's buffers with several cards. An assumption: 4 MiB a buffer (`NCCL_BUFFSIZE`), some dozens of channels."""
FRAGMENTS = 0.1
"""Share of the activations that the caching allocator loses to rounding and fragments. An assumption."""


@dataclass(frozen=True)
class Held:
    """The model's own facts that sharding needs."""

    trace: Trace
    layers: int


def alone(kinds: Mapping[str, int], _held: Held, _n: int) -> dict[str, int]:
    """One card: everything as traced."""
    return dict(kinds)


def ddp(kinds: Mapping[str, int], _held: Held, _n: int) -> dict[str, int]:
    """Everything whole on each card, and buckets as large as the gradients.

    Source: torch `DistributedDataParallel`, `gradient_as_bucket_view=False`, accelerate's default.
    """
    return {**kinds, BUFFERS: kinds.get(GRADIENTS, 0)}


def fsdp(kinds: Mapping[str, int], held: Held, n: int) -> dict[str, int]:
    """1/n of weights, adapters, gradients and moments; whole: two layers (one in use, one on its way), embedding and head.

    Scales of 4-bit weights are no parameters to FSDP, and stay whole. Source: torch `fully_shard` on each decoder layer and on
    the root, as accelerate's TRANSFORMER_BASED_WRAP does; it gathers the next layer while one is computed.
    """
    scales = held.trace.scale_bytes
    weights = kinds[WEIGHTS] - scales
    shard = {kind: kinds.get(kind, 0) // n for kind in (ADAPTERS, GRADIENTS, OPTIMIZER)}
    trained = (kinds.get(ADAPTERS, 0) + kinds.get(GRADIENTS, 0)) // held.layers
    layer = held.trace.layer_bytes - scales // held.layers
    return {
        **kinds,
        **shard,
        WEIGHTS: weights // n + scales,
        GATHERED: 2 * (layer + trained) + held.trace.outer_bytes,
    }


def fsdp_offload(kinds: Mapping[str, int], held: Held, n: int) -> dict[str, int]:
    """As `fsdp`, with the shards in the machine's memory: on the card only what is gathered, activations and scales.

    Source: torch `CPUOffloadPolicy`: parameters, gradients and moments live on the host, AdamW steps there.
    """
    sharded = fsdp(kinds, held, n)
    return {
        WEIGHTS: held.trace.scale_bytes,
        ACTIVATIONS: kinds.get(ACTIVATIONS, 0),
        GATHERED: sharded[GATHERED],
    }


STRATEGIES: dict[str, Callable[[Mapping[str, int], Held, int], dict[str, int]]] = {
    "one": alone,
    "ddp": ddp,
    "fsdp": fsdp,
    "fsdp-offload": fsdp_offload,
}
"""How the cards share the work, by name; `one` is a single card."""


def allowance(activations: int, n: int) -> int:
    """What no trace sees: CUDA's context, NCCL's buffers, the allocator's fragments. Stated, not measured."""
    return CONTEXT + (NCCL if n > 1 else 0) + int(FRAGMENTS * activations)


def moved_bytes(strategy: str, held: Held, weights: int, n: int, passes: int) -> float:
    """Bytes a card receives for one row: FSDP gathers all weights once for each pass over the layers."""
    if strategy in ("fsdp", "fsdp-offload"):
        return (
            passes
            * (weights - held.trace.scale_bytes)
            * max(n - 1, 1 if strategy == "fsdp-offload" else 0)
            / n
        )
    return 0.0
