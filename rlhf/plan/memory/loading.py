"""Memory of a GPU and of its machine while the base is loaded, before the first phase of an update."""

from __future__ import annotations

from rlhf.plan.memory.phases import Phase, Tracer, itemsize, model_facts
from rlhf.plan.memory.sharding import ALLOWANCE, GATHERED, STRATEGIES, allowance
from rlhf.plan.memory.trace import ADAPTERS, WEIGHTS
from rlhf.plan.memory.weights import largest_weight_bytes, loading_bytes
from rlhf.plan.request import Request, row_of


def loading_host_bytes(request: Request, tracer: Tracer) -> int:
    """Peak bytes of host memory while the base is loaded, see `rlhf.plan.weights`."""
    kinds, model = tracer(row_of(request.config)).peaks["update"].kinds, request.config.model
    return loading_bytes(
        kinds[WEIGHTS],
        model.quantization,
        sharded=request.strategy.startswith("fsdp"),
        offloaded=request.strategy == "fsdp-offload",
        processes=request.cluster.per_node,
    )


def loading_phase(request: Request, tracer: Tracer) -> Phase:
    """Memory of one GPU while the base is loaded: its share of weights and adapters, and the largest weight.

    A 4-bit weight is quantized on the GPU from its unquantized form; a weight to be sharded is there as a
    whole, in the first process twice (accelerate's `fsdp2_load_full_state_dict`).
    """
    config, gpu = request.config, request.cluster.gpu
    traced = tracer(row_of(config))
    kinds = {kind: traced.peaks["update"].kinds.get(kind, 0) for kind in (WEIGHTS, ADAPTERS)}
    share = STRATEGIES[request.strategy](kinds, model_facts(request, tracer), request.cluster.count)
    largest = largest_weight_bytes(tracer.shape, itemsize(config))
    sharded = request.strategy.startswith("fsdp")
    copies = 2 if sharded else 1 if config.model.quantization == "nf4" else 0
    resident = {kind: share.get(kind, 0) for kind in (WEIGHTS, ADAPTERS)}
    spare = allowance(0, request.cluster.count)
    return Phase("loading", {**resident, GATHERED: copies * largest, ALLOWANCE: spare}, gpu.memory)
