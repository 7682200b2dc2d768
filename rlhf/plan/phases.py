"""Each phase of a run, and what one card holds in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhf.config.policy import PolicyConfig
from rlhf.core.errors import ConfigError
from rlhf.plan.engine import EngineMemory, engine_memory, token_bytes, working_bytes
from rlhf.plan.gpus import Cluster
from rlhf.plan.ledger import ACTIVATIONS
from rlhf.plan.request import Request, row_of
from rlhf.plan.sharding import ALLOWANCE, BUFFERS, GATHERED, STRATEGIES, Held, allowance
from rlhf.plan.trace import ADAPTERS, GRADIENTS, OPTIMIZER, WEIGHTS, Row, Trace, trace

ENGINE, CACHE = "engine", "KV cache"
KINDS = (WEIGHTS, ADAPTERS, GRADIENTS, OPTIMIZER, ACTIVATIONS, GATHERED, ENGINE, CACHE, BUFFERS, ALLOWANCE)
"""Every kind of memory, in the order of the tables."""

SERVER_SHARE = 0.9
"""Share of its cards that a rollout server takes, vLLM's own default."""


@dataclass(frozen=True)
class Phase:
    """One phase on one card."""

    name: str
    kinds: Mapping[str, int]
    """Bytes by kind."""
    card: int
    """Bytes the card has."""
    trouble: str = ""
    """Why it cannot run whatever the sum says."""

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(self.kinds.values())

    @property
    def fits(self) -> bool:
        """Whether it runs on the card."""
        return self.total <= self.card and not self.trouble


class Tracer:
    """Traces through one shape, each made once."""

    def __init__(self, shape: Any) -> None:
        self.shape = shape
        self._made: dict[Row, Trace] = {}

    def __call__(self, row: Row) -> Trace:
        """The trace of a row."""
        if row not in self._made:
            self._made[row] = trace(self.shape, row)
        return self._made[row]


@dataclass(frozen=True)
class Engine:
    """The rollout engine of a plan."""

    memory: EngineMemory
    cluster: Cluster
    parallel: int
    """Cards of one engine."""

    @property
    def replicas(self) -> int:
        """Engines side by side."""
        return self.cluster.count // self.parallel


def held(request: Request, tracer: Tracer) -> Held:
    """What sharding has to know of the model."""
    shape, traced = tracer.shape, tracer(row_of(request.config))
    itemsize = 4 if request.config.model.dtype == "float32" else 2
    per_weight = 0.5 if request.config.model.quantization == "nf4" else itemsize
    return Held(traced, shape.num_hidden_layers, shape.hidden_size, per_weight)


def phases(request: Request, tracer: Tracer) -> list[Phase]:
    """Every phase of the request's run, in the order of one update."""
    traced = tracer(row_of(request.config))
    update = max((traced.peaks[name] for name in ("update", "optimizer")), key=lambda peak: peak.total)
    scoring = {kind: size for kind, size in traced.peaks["scoring"].kinds.items() if kind != GRADIENTS}
    if not isinstance(request.config, PolicyConfig):
        return [
            _phase(request, tracer, "update", update.kinds),
            _phase(request, tracer, "validation", scoring),
        ]
    engine = engine_of(request, tracer)
    beside: dict[str, int] = {}
    if engine is not None and request.servers is None:
        beside = {ENGINE: engine.memory.weights, CACHE: engine.memory.cache}
    return [
        _rollouts(request, tracer, engine),
        _phase(request, tracer, "scoring", scoring, beside),
        _phase(request, tracer, "reference", traced.peaks["reference"].kinds, beside),
        _phase(request, tracer, "update", update.kinds, beside),
    ]


def _phase(
    request: Request,
    tracer: Tracer,
    name: str,
    kinds: Mapping[str, int],
    beside: Mapping[str, int] | None = None,
) -> Phase:
    n = request.cluster.count
    share = STRATEGIES[request.strategy](kinds, held(request, tracer), n)
    spare = allowance(share.get(ACTIVATIONS, 0), n)
    return Phase(name, {**share, **(beside or {}), ALLOWANCE: spare}, request.cluster.card.memory)


def _rollouts(request: Request, tracer: Tracer, engine: Engine | None) -> Phase:
    """The engine at work: beside the trainer's weights, adapters and moments, or on cards of its own."""
    config = request.config
    assert isinstance(config, PolicyConfig)
    resident = {
        kind: size
        for kind, size in tracer(row_of(config)).peaks["update"].kinds.items()
        if kind in (WEIGHTS, ADAPTERS, OPTIMIZER)
    }
    if engine is None:  # transformers' generate, on the trainer's own weights
        answers = (
            config.rollouts.prompts_per_step * config.rollouts.samples_per_prompt // request.cluster.count
        )
        width = config.data.max_prompt_tokens + config.rollouts.max_new_tokens
        itemsize = 4 if config.model.dtype == "float32" else 2
        cache = max(1, answers) * width * token_bytes(tracer.shape, itemsize)
        resident[ACTIVATIONS] = working_bytes(tracer.shape, itemsize, answers, config.data.max_prompt_tokens)
        return _phase(request, tracer, "rollouts", resident, {CACHE: cache})
    memory = engine.memory
    used = {ENGINE: memory.weights + memory.working, CACHE: memory.cache}
    trouble = "" if memory.at_once else _too_small(config)
    if request.servers is not None:
        spare = allowance(0, engine.parallel)
        return Phase("rollouts", {**used, ALLOWANCE: spare}, engine.cluster.card.memory, trouble)
    # Nothing is gathered and nothing is kept for a backward pass while the engine works.
    phase = _phase(request, tracer, "rollouts", resident, used)
    kinds = {kind: size for kind, size in phase.kinds.items() if kind not in (GATHERED, BUFFERS)}
    return Phase(phase.name, kinds, phase.card, trouble)


def _too_small(config: PolicyConfig) -> str:
    need = config.data.max_prompt_tokens + config.rollouts.max_new_tokens
    return f"vLLM would not start: beside its weights its share of a card has no room for one sequence of {need} tokens"


def engine_of(request: Request, tracer: Tracer) -> Engine | None:
    """vLLM as the request has it; None where transformers generates, or nothing is sampled.

    On servers an engine takes the fewest cards of a machine (1, 2, 4, 8 …) that hold the base and one sequence at least.
    """
    config = request.config
    if not isinstance(config, PolicyConfig) or (
        config.rollouts.engine == "transformers" and not request.servers
    ):
        return None
    where = request.servers or request.cluster
    share = SERVER_SHARE if request.servers else config.rollouts.gpu_memory_share
    answers = config.rollouts.prompts_per_step * config.rollouts.samples_per_prompt
    itemsize = 4 if config.model.dtype == "float32" else 2
    adapter = tracer(row_of(config)).peaks["update"].kinds[GRADIENTS] * itemsize // 4  # as many as gradients

    def of(parallel: int) -> Engine:
        sequences = max(1, answers * parallel // where.count)
        memory = engine_memory(
            tracer.shape,
            budget=int(share * where.card.memory),
            parallel=parallel,
            dtype_bytes=itemsize,
            quantization=config.model.quantization,
            adapter=adapter,
            sequences=sequences,
            max_model_len=config.data.max_prompt_tokens + config.rollouts.max_new_tokens,
        )
        return Engine(memory, where, parallel)

    if request.servers is None:
        return of(1)
    sizes = [size for size in (1, 2, 4, 8, 16) if size <= where.per_node and where.per_node % size == 0]
    return next((engine for engine in map(of, sizes) if engine.memory.at_once), of(sizes[-1]))


def check_strategy(strategy: str, cluster: Cluster) -> None:
    """Make sure that the cards can share the work in this way.

    Raises:
        ConfigError: an unknown way, or one that needs several cards.
    """
    if strategy not in STRATEGIES:
        raise ConfigError(f"--parallel {strategy!r} is not known.", allowed=f"auto, {', '.join(STRATEGIES)}")
    if (strategy == "one") != (cluster.count == 1) and strategy != "fsdp-offload":
        raise ConfigError(
            f"--parallel {strategy} with {cluster}.",
            allowed="`one` or `fsdp-offload` for one card; ddp, fsdp, fsdp-offload or zero3 for several",
            fix="--parallel auto",
        )
