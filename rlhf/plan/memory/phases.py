"""The phases of a run, and the memory of one GPU in each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlhf.config.policy import PolicyConfig
from rlhf.config.reward import RewardConfig
from rlhf.core.errors import ConfigError
from rlhf.plan.gpus import Cluster
from rlhf.plan.memory.engine import (
    GRAPHS,
    LARGE,
    LARGE_SERVER_TOKENS,
    SERVER_TOKENS,
    EngineMemory,
    engine_memory,
    paged_memory,
    token_bytes,
    working_bytes,
)
from rlhf.plan.memory.ledger import ACTIVATIONS
from rlhf.plan.memory.passes import UpdateRow
from rlhf.plan.memory.sharding import ALLOWANCE, BUFFERS, GATHERED, STRATEGIES, ModelFacts, allowance
from rlhf.plan.memory.trace import ADAPTERS, GRADIENTS, OPTIMIZER, WEIGHTS, Trace, trace
from rlhf.plan.request import Request, row_of

ENGINE, CACHE = "engine", "KV cache"
KINDS = (WEIGHTS, ADAPTERS, GRADIENTS, OPTIMIZER, ACTIVATIONS, GATHERED, ENGINE, CACHE, BUFFERS, ALLOWANCE)
"""Every kind of memory, in the order of the tables."""

REWARD_PHASES = ("update", "validation")
POLICY_PHASES = ("scoring", "log-probabilities", "update", "critic")
"""Phases after the rollouts; `scoring` needs a reward model on the base, `critic` a critic."""
PASSES = {"validation": "scoring", "log-probabilities": "measuring"}
"""Phase: the name of its pass in a trace, where the two differ."""

SERVER_SHARE = 0.9
"""Share of its GPUs' memory that a rollout server takes, as docs/servers.md and slurm.sh start it; vLLM's
default is 0.92."""


@dataclass(frozen=True)
class Phase:
    """One phase on one GPU."""

    name: str
    kinds: Mapping[str, int]
    """Bytes by kind."""
    capacity: int
    """Bytes of the GPU."""
    trouble: str = ""
    """Why the phase cannot run even if it fits; empty if it can."""

    @property
    def total(self) -> int:
        """Sum of all kinds, in bytes."""
        return sum(self.kinds.values())

    @property
    def fits(self) -> bool:
        """Whether it fits on the GPU."""
        return self.total <= self.capacity and not self.trouble


class Tracer:
    """Traces of one model, cached by row."""

    def __init__(self, shape: Any) -> None:
        self.shape = shape
        self._traces: dict[UpdateRow, Trace] = {}

    def __call__(self, row: UpdateRow) -> Trace:
        """The trace of a row."""
        if row not in self._traces:
            self._traces[row] = trace(self.shape, row)
        return self._traces[row]


@dataclass(frozen=True)
class Engine:
    """The rollout engine of a plan."""

    memory: EngineMemory
    cluster: Cluster
    parallel: int
    """GPUs of one engine."""
    paged: bool = False
    """Whether it is transformers' paged cache on the trained model."""

    @property
    def replicas(self) -> int:
        """Number of engines."""
        return self.cluster.count // self.parallel


def model_facts(request: Request, tracer: Tracer) -> ModelFacts:
    """The model's facts for the formulas of sharding."""
    return ModelFacts(tracer(row_of(request.config)), tracer.shape.num_hidden_layers)


def phases(request: Request, tracer: Tracer) -> list[Phase]:
    """Every phase of the request's run, in the order of one update."""
    config, peaks = request.config, tracer(row_of(request.config)).peaks
    kinds = {name: peak.kinds for name, peak in peaks.items()}
    if peaks["optimizer"].total > peaks["update"].total:
        kinds["update"] = kinds["optimizer"]
    if "scoring" in kinds:  # it runs before there are gradients
        kinds["scoring"] = {kind: size for kind, size in kinds["scoring"].items() if kind != GRADIENTS}
    if not isinstance(config, PolicyConfig):
        return [_phase(request, tracer, name, kinds[PASSES.get(name, name)]) for name in REWARD_PHASES]
    engine = engine_of(request, tracer)
    beside: dict[str, int] = {}
    if engine is not None and request.servers is None and not (config.rollouts.sleep or engine.paged):
        beside = {ENGINE: engine.memory.weights + GRAPHS, CACHE: engine.memory.cache}
    return [
        _rollouts(request, tracer, engine),
        *(
            _phase(request, tracer, name, kinds[PASSES.get(name, name)], beside)
            for name in POLICY_PHASES
            if PASSES.get(name, name) in kinds
        ),
    ]


def tightest(request: Request, planned: Sequence[Phase]) -> Phase:
    """The phase that cannot run, or else leaves the least memory free.

    Rollout servers fill their share by design, so they count only where they do not fit.
    """
    candidates = [
        phase for phase in planned if phase.name != "rollouts" or request.servers is None or not phase.fits
    ]
    return max(candidates, key=lambda phase: (bool(phase.trouble), phase.total - phase.capacity))


def _phase(
    request: Request,
    tracer: Tracer,
    name: str,
    kinds: Mapping[str, int],
    beside: Mapping[str, int] | None = None,
) -> Phase:
    n = request.cluster.count
    share = STRATEGIES[request.strategy](kinds, model_facts(request, tracer), n)
    spare = allowance(share.get(ACTIVATIONS, 0), n)
    return Phase(name, {**share, **(beside or {}), ALLOWANCE: spare}, request.cluster.gpu.memory)


def _rollouts(request: Request, tracer: Tracer, engine: Engine | None) -> Phase:
    """Rollouts: the engine beside the trainer's weights, adapters and moments, or on separate GPUs."""
    config = request.config
    assert isinstance(config, PolicyConfig)
    resident = {
        kind: size
        for kind, size in tracer(row_of(config)).peaks["update"].kinds.items()
        if kind in (WEIGHTS, ADAPTERS, OPTIMIZER)
    }
    if engine is None:  # transformers' padded generate, on the trainer's weights
        answers = config.rollouts.answers // request.cluster.count
        width = config.data.max_prompt_tokens + config.rollouts.max_new_tokens
        cache = max(1, answers) * width * token_bytes(tracer.shape, itemsize(config))
        prompt = config.data.max_prompt_tokens
        resident[ACTIVATIONS] = working_bytes(
            tracer.shape, itemsize(config), answers, prompt, max(1, answers) * prompt
        )
        return _phase(request, tracer, "rollouts", resident, {CACHE: cache})
    memory = engine.memory
    used = {ENGINE: memory.working + memory.weights, CACHE: memory.cache}
    if engine.paged and not memory.at_once:
        need = config.data.max_prompt_tokens + config.rollouts.max_new_tokens
        trouble = f"the cache that fits beside the weights cannot hold one sequence of {need} tokens"
    else:
        trouble = "" if memory.at_once else _too_small(config)
    if request.servers is not None:
        spare = allowance(0, engine.parallel)
        return Phase("rollouts", {**used, ALLOWANCE: spare}, engine.cluster.gpu.memory, trouble)
    # While the engine samples, nothing is gathered and no activations are kept for a backward pass.
    phase = _phase(request, tracer, "rollouts", resident, used)
    kinds = {kind: size for kind, size in phase.kinds.items() if kind not in (GATHERED, BUFFERS)}
    return Phase(phase.name, kinds, phase.capacity, trouble)


def _too_small(config: PolicyConfig) -> str:
    need = config.data.max_prompt_tokens + config.rollouts.max_new_tokens
    return (
        f"vLLM would not start: its share of a GPU cannot hold its weights and one sequence of {need} tokens"
    )


def engine_of(request: Request, tracer: Tracer) -> Engine | None:
    """The rollout engine of a request; None for transformers' padded generate and for reward training.

    Servers named in the config get equal numbers of GPUs. Otherwise the tensor parallel size (1, 2, 4, 8, 16
    GPUs of a machine) is the smallest with which most answers are sampled at once.
    """
    config = request.config
    if not isinstance(config, PolicyConfig):
        return None
    if config.rollouts.engine == "transformers" and not request.servers:
        return _paged(request, config, tracer)
    where = request.servers or request.cluster
    batched = config.rollouts.max_num_batched_tokens
    if request.servers is not None:
        batched = LARGE_SERVER_TOKENS if where.gpu.memory >= LARGE else SERVER_TOKENS
    share = SERVER_SHARE if request.servers else config.rollouts.gpu_memory_share
    answers = config.rollouts.answers
    bytes_each = itemsize(config)
    adapter = adapter_bytes(config, tracer)

    def engine_with(parallel: int) -> Engine:
        sequences = max(1, answers * parallel // where.count)
        memory = engine_memory(
            tracer.shape,
            budget=int(share * where.gpu.memory),
            parallel=parallel,
            dtype_bytes=bytes_each,
            quantization=config.model.quantization,
            adapter=adapter,
            sequences=sequences,
            max_model_len=config.data.max_prompt_tokens + config.rollouts.max_new_tokens,
            batched_tokens=batched,
        )
        return Engine(memory, where, parallel)

    if request.servers is None:
        return engine_with(1)
    if config.rollouts.servers:
        return engine_with(where.count // len(config.rollouts.servers))
    sizes = [size for size in (1, 2, 4, 8, 16) if size <= where.per_node and where.per_node % size == 0]
    return max(
        map(engine_with, sizes),
        key=lambda engine: (engine.memory.at_once * engine.replicas, -engine.parallel),
    )


def _paged(request: Request, config: PolicyConfig, tracer: Tracer) -> Engine | None:
    """transformers' continuous batching in the memory the trainer leaves; None for padded generate."""
    if config.rollouts.continuous_batching is False or request.strategy.startswith("fsdp"):
        return None
    gpu, count = request.cluster.gpu, request.cluster.count
    kinds = tracer(row_of(config)).peaks["update"].kinds
    resident = sum(kinds.get(kind, 0) for kind in (WEIGHTS, ADAPTERS, OPTIMIZER))
    memory = paged_memory(
        tracer.shape,
        free=gpu.memory - resident - allowance(0, count),
        dtype_bytes=itemsize(config),
        sequences=max(1, config.rollouts.answers // count),
        max_model_len=config.data.max_prompt_tokens + config.rollouts.max_new_tokens,
        batched_tokens=config.rollouts.max_num_batched_tokens,
    )
    return Engine(memory, request.cluster, 1, paged=True)


def adapter_bytes(config: PolicyConfig, tracer: Tracer) -> int:
    """Bytes of the policy's adapter in the format of the base."""
    trained = tracer(row_of(config)).peaks["update"].kinds[GRADIENTS] * itemsize(config) // 4
    return trained // (2 if config.algorithm.critic else 1)


def itemsize(config: RewardConfig | PolicyConfig) -> int:
    """Bytes of an unquantized weight."""
    return 4 if config.model.dtype == "float32" else 2


def with_servers(request: Request, tracer: Tracer) -> Request:
    """The request with GPUs for its config's servers; by default the fewest of the trainer's kind that fit.

    Raises:
        ConfigError: the GPUs cannot be divided equally between the servers.
    """
    config = request.config
    if not isinstance(config, PolicyConfig) or config.rollouts.engine != "servers":
        return request
    number = len(config.rollouts.servers)
    if request.servers is not None:
        if request.servers.count % number or request.servers.count // number > request.servers.per_node:
            raise ConfigError(
                f"--rollout-gpus {request.servers} for the {number} servers of rollouts.servers.",
                allowed="the same number of GPUs for each server, all in one machine",
                fix=f"--rollout-gpus {Cluster(request.servers.gpu, 1, number)}",
            )
        return request
    candidates = [
        replace(request, servers=Cluster(request.cluster.gpu, count, number)) for count in (1, 2, 4, 8)
    ]
    engines = [(candidate, engine_of(candidate, tracer)) for candidate in candidates]
    return next(
        (candidate for candidate, engine in engines if engine and engine.memory.at_once), candidates[-1]
    )


def host_bytes(request: Request, tracer: Tracer) -> int:
    """Bytes of host memory for offloaded weights, adapters, gradients and moments; 0 without offload."""
    if request.strategy != "fsdp-offload":
        return 0
    traced = tracer(row_of(request.config))
    kinds = traced.peaks["update"].kinds
    stored = sum(kinds.get(kind, 0) for kind in (WEIGHTS, ADAPTERS, GRADIENTS, OPTIMIZER))
    return (stored - traced.scale_bytes) // request.cluster.nodes


def check_strategy(strategy: str, cluster: Cluster) -> None:
    """Check a strategy against the number of GPUs.

    Raises:
        ConfigError: the strategy is unknown, or does not suit one GPU or several.
    """
    if strategy not in STRATEGIES:
        raise ConfigError(f"--parallel {strategy!r} is not known.", allowed=f"auto, {', '.join(STRATEGIES)}")
    if (strategy == "one") != (cluster.count == 1) and strategy != "fsdp-offload":
        raise ConfigError(
            f"--parallel {strategy} with {cluster}.",
            allowed="`one` or `fsdp-offload` for one GPU; ddp, fsdp or fsdp-offload for several",
            fix="--parallel auto",
        )


def check_shares(config: RewardConfig | PolicyConfig, cluster: Cluster) -> None:
    """Check that an update can be divided equally between the GPUs.

    Raises:
        ConfigError: a batch is not a multiple of the number of GPUs.
    """
    if isinstance(config, PolicyConfig):
        counts = {"rollouts.prompts_per_step": config.rollouts.prompts_per_step}
    else:
        counts = {
            f"stages.{number}.batch_size": stage.batch_size for number, stage in enumerate(config.stages)
        }
    for key, count in counts.items():
        if count % cluster.count:
            raise ConfigError(
                f"{key} is {count}, over all GPUs, and {cluster} has {cluster.count} of them.",
                allowed=f"a multiple of {cluster.count}",
                fix=f"{key}={-(-count // cluster.count) * cluster.count}, or another number of GPUs",
            )
