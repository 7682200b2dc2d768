"""Memory of one GPU of several under DDP or FSDP2, and the bytes that it communicates.

Formulas are per GPU, for n GPUs. `gathered` are unsharded parameters; `buffers` are those of DDP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rlhf.plan.memory.ledger import ACTIVATIONS
from rlhf.plan.memory.trace import ADAPTERS, GRADIENTS, OPTIMIZER, WEIGHTS, Trace

GATHERED, BUFFERS, ALLOWANCE = "gathered", "buffers", "allowance"

CONTEXT = 2**30
"""CUDA's context, its kernels and cuBLAS's workspace. An estimate: torch's context took 0.27 GiB with kernels
loaded lazily and 0.62 without (torch's pull request 86509); 1.3 GiB in transformers' documentation ("Model
training anatomy")."""
NCCL = 2**29
"""NCCL's buffers on several GPUs. An estimate: 4 MiB a buffer (`NCCL_BUFFSIZE`), some dozens of
channels."""
FRAGMENTS = 0.1
"""Share of the activations that the caching allocator loses to rounding and fragments. An estimate;
a run logs `memory/reserved_gib` beside `memory/peak_gib`, whose difference it is."""


@dataclass(frozen=True)
class ModelFacts:
    """What the sharding formulas need to know of the model."""

    trace: Trace
    layers: int


def alone(kinds: Mapping[str, int], _facts: ModelFacts, _n: int) -> dict[str, int]:
    """One GPU: everything as traced."""
    return dict(kinds)


def ddp(kinds: Mapping[str, int], _facts: ModelFacts, _n: int) -> dict[str, int]:
    """Everything replicated on each GPU, and buckets as large as the gradients.

    Source: torch `DistributedDataParallel`, `gradient_as_bucket_view=False`, accelerate's default.
    """
    return {**kinds, BUFFERS: kinds.get(GRADIENTS, 0)}


def fsdp(kinds: Mapping[str, int], facts: ModelFacts, n: int) -> dict[str, int]:
    """1/n of weights, adapters, gradients and moments; unsharded: two layers, embedding and head.

    Of the two layers one is computed and the next one is prefetched. Scales of 4-bit weights are not
    parameters, so FSDP leaves them unsharded. Every pass averages its gradients, so none are kept whole, see
    `TrainerMixin.accumulate`. Source: torch `fully_shard` on each decoder layer and on the root, as
    accelerate's TRANSFORMER_BASED_WRAP does.
    """
    scales = facts.trace.scale_bytes
    weights = kinds[WEIGHTS] - scales
    shard = {kind: kinds.get(kind, 0) // n for kind in (ADAPTERS, GRADIENTS, OPTIMIZER)}
    trained = (kinds.get(ADAPTERS, 0) + kinds.get(GRADIENTS, 0)) // facts.layers
    layer = facts.trace.layer_bytes - scales // facts.layers
    return {
        **kinds,
        **shard,
        WEIGHTS: weights // n + scales,
        GATHERED: 2 * (layer + trained) + facts.trace.outer_bytes,
    }


def fsdp_offload(kinds: Mapping[str, int], facts: ModelFacts, n: int) -> dict[str, int]:
    """As `fsdp`, with the shards in host memory: the GPU holds gathered parameters, activations and scales.

    Source: torch `CPUOffloadPolicy`: parameters, gradients and moments live on the host, AdamW steps there.
    """
    sharded = fsdp(kinds, facts, n)
    return {
        WEIGHTS: facts.trace.scale_bytes,
        ACTIVATIONS: kinds.get(ACTIVATIONS, 0),
        GATHERED: sharded[GATHERED],
    }


STRATEGIES: dict[str, Callable[[Mapping[str, int], ModelFacts, int], dict[str, int]]] = {
    "one": alone,
    "ddp": ddp,
    "fsdp": fsdp,
    "fsdp-offload": fsdp_offload,
}
"""Strategy by its name in `--parallel`; `one` is a single GPU."""


def allowance(activations: int, n: int) -> int:
    """Bytes that a trace does not see: CUDA's context, NCCL's buffers, fragmentation. An assumption."""
    return CONTEXT + (NCCL if n > 1 else 0) + int(FRAGMENTS * activations)


def moved_bytes(strategy: str, facts: ModelFacts, weights: int, n: int, passes: int) -> float:
    """Bytes a GPU receives for one row: FSDP gathers all weights once for each pass over the layers."""
    if strategy in ("fsdp", "fsdp-offload"):
        return (
            passes
            * (weights - facts.trace.scale_bytes)
            * max(n - 1, 1 if strategy == "fsdp-offload" else 0)
            / n
        )
    return 0.0
