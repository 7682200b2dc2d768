"""Changes to a run that does not fit: the effect of each alone, and the smallest set that fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from rlhf.config.policy import PolicyConfig
from rlhf.plan.gpus import GIB, Cluster
from rlhf.plan.memory.phases import Phase, Tracer, engine_of, phases, tightest
from rlhf.plan.request import Request, changed, longest_tree, row_of

LARGEST = 64  # GPUs that are tried at most


@dataclass(frozen=True)
class Change:
    """One change and its effect."""

    what: str
    """What to type."""
    price: str
    """Its cost in speed, quality or hardware."""
    highest: int
    """Bytes of the largest phase afterwards."""
    saved: int
    fits: bool


@dataclass(frozen=True)
class Remedy:
    """Changes with which the run fits."""

    changes: list[str]
    request: Request
    phases: list[Phase]


@dataclass(frozen=True)
class _Step:
    what: str
    price: str
    request: Request


def fits(planned: Sequence[Phase]) -> bool:
    """Whether every phase fits."""
    return all(phase.fits for phase in planned)


def best_strategy(request: Request, tracer: Tracer) -> Request:
    """The request with the first strategy that fits, DDP before FSDP2; with the last one where none does."""
    names = ["one"] if request.cluster.count == 1 else ["ddp", "fsdp"]
    candidates = [replace(request, strategy=name) for name in names]
    return next((each for each in candidates if fits(phases(each, tracer))), candidates[-1])


def single_changes(request: Request, tracer: Tracer) -> list[Change]:
    """The changes that save memory, each applied alone: those that fit first, then by bytes saved."""
    now = phases(request, tracer)
    changes = []
    for make in STEPS:
        for step in make(request, tracer):
            after = phases(step.request, tracer)
            worst = tightest(step.request, after)
            saved = _overrun(request, now) - _overrun(step.request, after)
            if saved > 0.05 * GIB or (fits(after) and not fits(now)):
                changes.append(Change(step.what, step.price, worst.total, saved, fits(after)))
    return sorted(changes, key=lambda change: (not change.fits, -change.saved))


def remedy(request: Request, tracer: Tracer) -> Remedy | None:
    """The smallest set of changes that fits on these GPUs; None where none does.

    Changes are added in the order of `STEPS`; those that turn out to be unnecessary are removed again.
    """
    taken: list[Callable[[Request, Tracer], Iterator[_Step]]] = []
    now, words = request, []
    for make in STEPS:
        if fits(phases(now, tracer)):
            break
        step = next(make(now, tracer), None)
        if step is not None and _better(step.request, now, tracer):
            now = step.request
            words.append(step.what)
            taken.append(make)
    if not fits(phases(now, tracer)):
        return None
    for make in list(taken):
        fewer = [other for other in taken if other is not make]
        without, kept = _apply(request, fewer, tracer)
        if fits(phases(without, tracer)):
            taken, now, words = fewer, without, kept
    return Remedy(words, now, phases(now, tracer))


def larger(request: Request, tracer: Tracer) -> Remedy | None:
    """The fewest GPUs of this kind on which some set of changes fits; None where `LARGEST` are too few."""
    gpu, count = request.cluster.gpu, request.cluster.count
    while count < LARGEST:
        count *= 2
        nodes = max(1, count // 8)
        wider = Request(request.config, Cluster(gpu, count // nodes, nodes), "fsdp", request.servers)
        wider_remedy = remedy(best_strategy(wider, tracer), tracer)
        if wider_remedy is not None:
            return wider_remedy
    return None


def _apply(
    request: Request, makers: Sequence[Callable[[Request, Tracer], Iterator[_Step]]], tracer: Tracer
) -> tuple[Request, list[str]]:
    words = []
    for make in makers:
        step = next(make(request, tracer), None)
        if step is not None:
            request = step.request
            words.append(step.what)
    return request, words


def _overrun(request: Request, planned: Sequence[Phase]) -> int:
    """Bytes that the tightest phase lacks; negative where it fits."""
    worst = tightest(request, planned)
    return worst.total - worst.capacity


def _better(after: Request, before: Request, tracer: Tracer) -> bool:
    then, now = phases(after, tracer), phases(before, tracer)
    troubles = sum(bool(p.trouble) for p in then) - sum(bool(p.trouble) for p in now)
    return troubles < 0 or (troubles == 0 and _overrun(after, then) < _overrun(before, now))


def _checkpointing(request: Request, tracer: Tracer) -> Iterator[_Step]:
    if not request.config.model.gradient_checkpointing:
        config = changed(request.config, "model.gradient_checkpointing", True)
        flops, before = (tracer(row_of(each)).flops["update"] for each in (config, request.config))
        price = f"updates {flops / before - 1:.0%} slower"
        yield _Step("model.gradient_checkpointing=true", price, replace(request, config=config))


def _shard(request: Request, _: Tracer) -> Iterator[_Step]:
    if request.strategy == "ddp":
        yield _Step(
            "--parallel fsdp", "weights are communicated in every pass", replace(request, strategy="fsdp")
        )


def _share(request: Request, tracer: Tracer) -> Iterator[_Step]:
    """The largest share for vLLM with which all phases fit."""
    config = request.config
    if not isinstance(config, PolicyConfig) or config.rollouts.engine != "vllm" or request.servers:
        return
    for percent in range(90, 5, -5):
        share = percent / 100
        tried = replace(request, config=changed(config, "rollouts.gpu_memory_share", share))
        if share != config.rollouts.gpu_memory_share and fits(phases(tried, tracer)):
            yield _Step(f"rollouts.gpu_memory_share={share:g}", "fewer answers at once", tried)
            return


def _four_bits(request: Request, _: Tracer) -> Iterator[_Step]:
    if request.config.model.quantization == "none":
        config = changed(request.config, "model.quantization", "nf4")
        yield _Step(
            "model.quantization=nf4", "slower products, a base in 4 bits", replace(request, config=config)
        )


def _smaller_rows(request: Request, _: Tracer) -> Iterator[_Step]:
    longest = longest_tree(request.config)
    if longest < request.config.tokens_per_batch:
        config = changed(request.config, "tokens_per_batch", longest)
        yield _Step(
            f"tokens_per_batch={longest}", "shorter rows, same result", replace(request, config=config)
        )


def _servers(request: Request, tracer: Tracer) -> Iterator[_Step]:
    """Rollouts on the fewest additional GPUs that hold the engine."""
    config = request.config
    if not isinstance(config, PolicyConfig):
        return
    now = engine_of(request, tracer) if request.servers else None
    if now is not None and now.memory.at_once:
        return
    elsewhere = changed(config, "rollouts.engine", "servers")
    words = "" if config.rollouts.engine == "servers" else "rollouts.engine=servers "
    gpu = (request.servers or request.cluster).gpu
    for count in (1, 2, 4, 8):
        there = Cluster(gpu, count, len(config.rollouts.servers) or 1)
        tried = replace(request, config=elsewhere, servers=there)
        engine = engine_of(tried, tracer)
        if engine is not None and engine.memory.at_once:
            price = "one more GPU" if there.count == 1 else f"{there.count} GPUs for rollouts"
            yield _Step(f"{words}--rollout-gpus {there}", price, tried)
            return


def _shorter(request: Request, _: Tracer) -> Iterator[_Step]:
    config = request.config
    if isinstance(config, PolicyConfig):
        new, prompt = config.rollouts.max_new_tokens // 2, config.data.max_prompt_tokens // 2
        config = changed(config, "rollouts.max_new_tokens", new)
        config = changed(config, "data.max_prompt_tokens", prompt)
        words = f"rollouts.max_new_tokens={new} data.max_prompt_tokens={prompt}"
        price = "longer prompts dropped, longer answers cut"
    else:
        length = config.model.max_length // 2
        config = changed(config, "model.max_length", length)
        words, price = f"model.max_length={length}", "longer conversations dropped"
    budget = min(config.tokens_per_batch, longest_tree(config))
    config = changed(config, "tokens_per_batch", budget)
    yield _Step(f"{words} tokens_per_batch={budget}", price, replace(request, config=config))


def _offload(request: Request, _: Tracer) -> Iterator[_Step]:
    if request.strategy != "fsdp-offload":
        price = "weights cross PCIe in every pass"
        yield _Step("--parallel fsdp-offload", price, replace(request, strategy="fsdp-offload"))


STEPS: tuple[Callable[[Request, Tracer], Iterator[_Step]], ...] = (
    _smaller_rows,
    _checkpointing,
    _shard,
    _share,
    _four_bits,
    _servers,
    _shorter,
    _offload,
)
"""Changes in the order in which they are tried: the cheapest first."""
