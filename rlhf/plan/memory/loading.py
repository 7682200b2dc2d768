"""Memory of a GPU and of its machine while the base is loaded, before the first phase of an update."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.config.policy import PolicyConfig
from rlhf.plan.memory.phases import Phase, Tracer, engine_of, host_bytes, itemsize, model_facts
from rlhf.plan.memory.sharding import ALLOWANCE, GATHERED, STRATEGIES, allowance
from rlhf.plan.memory.trace import ADAPTERS, WEIGHTS
from rlhf.plan.memory.weights import largest_weight_bytes, loading_bytes
from rlhf.plan.request import Request, row_of


@dataclass(frozen=True)
class HostMemory:
    """Memory of one machine, in bytes, beside that of its GPUs."""

    loading: int
    """Peak while the base is loaded, see `rlhf.plan.memory.weights.loading_bytes`."""
    training: int
    """From then on: offloaded shards, and the weights of an engine that sleeps."""
    available: int | None = None
    """Of the machine; None where it is not known."""

    @property
    def need(self) -> int:
        """The larger of both."""
        return max(self.loading, self.training)

    @property
    def fits(self) -> bool:
        """Whether it suffices, as far as is known."""
        return self.available is None or self.need <= self.available


def host_memory(request: Request, tracer: Tracer, available: int | None = None) -> HostMemory:
    """What a request needs of one machine's memory; the interpreter and libraries are not counted."""
    kinds, model = tracer(row_of(request.config)).peaks["update"].kinds, request.config.model
    loading = loading_bytes(
        kinds[WEIGHTS],
        model.quantization,
        sharded=request.strategy.startswith("fsdp"),
        offloaded=request.strategy == "fsdp-offload",
        processes=request.cluster.per_node,
    )
    training = host_bytes(request, tracer) + asleep_bytes(request, tracer)
    return HostMemory(loading, training, available)


def asleep_bytes(request: Request, tracer: Tracer) -> int:
    """Bytes of host memory, on one machine, of the engines' weights between rollouts; 0 without sleep."""
    config = request.config
    if not isinstance(config, PolicyConfig) or not config.rollouts.sleep or request.servers is not None:
        return 0
    engine = engine_of(request, tracer)
    return 0 if engine is None else engine.memory.weights * request.cluster.per_node


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
