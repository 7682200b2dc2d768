"""What to change where a run does not fit: each change's effect, and the mildest set of changes that fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from rlhf.config.policy import PolicyConfig
from rlhf.plan.gpus import GIB, Cluster
from rlhf.plan.phases import Phase, Tracer, engine_of, phases, tightest
from rlhf.plan.request import Request, changed, longest_tree

LARGEST = 64  # cards that are tried for a run that fits on no fewer


@dataclass(frozen=True)
class Change:
    """One change alone."""

    what: str
    """What to type."""
    price: str
    """What it costs otherwise."""
    highest: int
    """Bytes of the highest phase afterwards."""
    saved: int
    fits: bool


@dataclass(frozen=True)
class WayOut:
    """Changes that together fit."""

    changes: list[str]
    request: Request
    phases: list[Phase]


@dataclass(frozen=True)
class _Step:
    what: str
    price: str
    request: Request


def fits(found: Sequence[Phase]) -> bool:
    """Whether every phase runs."""
    return all(phase.fits for phase in found)


def best_strategy(request: Request, tracer: Tracer) -> Request:
    """The first way to share the work that fits: the fewer bytes move, the earlier it is tried; else the smallest."""
    ways = ["one"] if request.cluster.count == 1 else ["ddp", "fsdp"]
    tried = [replace(request, strategy=way) for way in ways]
    return next((one for one in tried if fits(phases(one, tracer))), tried[-1])


def single_changes(request: Request, tracer: Tracer) -> list[Change]:
    """Every change that helps, alone: those that fit first, then by what they save."""
    now = phases(request, tracer)
    found = []
    for make in STEPS:
        for step in make(request, tracer):
            after = phases(step.request, tracer)
            worst = tightest(step.request, after)
            saved = _overrun(request, now) - _overrun(step.request, after)
            if saved > 0.05 * GIB or (fits(after) and not fits(now)):
                found.append(Change(step.what, step.price, worst.total, saved, fits(after)))
    return sorted(found, key=lambda change: (not change.fits, -change.saved))


def way_out(request: Request, tracer: Tracer) -> WayOut | None:
    """The mildest changes that fit on these cards, found by adding them in order and leaving out what is not needed."""
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
        without, said = _apply(request, fewer, tracer)
        if fits(phases(without, tracer)):
            taken, now, words = fewer, without, said
    return WayOut(words, now, phases(now, tracer))


def larger(request: Request, tracer: Tracer) -> WayOut | None:
    """The fewest cards of this kind on which some set of changes fits; None where even `LARGEST` are too few."""
    card, count = request.cluster.card, request.cluster.count
    while count < LARGEST:
        count *= 2
        nodes = max(1, count // 8)
        wider = Request(request.config, Cluster(card, count // nodes, nodes), "fsdp", request.servers)
        found = way_out(best_strategy(wider, tracer), tracer)
        if found is not None:
            return found
    return None


def _apply(
    request: Request, makers: Sequence[Callable[[Request, Tracer], Iterator[_Step]]], tracer: Tracer
) -> tuple[Request, list[str]]:
    said = []
    for make in makers:
        step = next(make(request, tracer), None)
        if step is not None:
            request = step.request
            said.append(step.what)
    return request, said


def _overrun(request: Request, found: Sequence[Phase]) -> int:
    """Bytes by which the worst phase misses its card; negative where it fits."""
    worst = tightest(request, found)
    return worst.total - worst.card


def _better(after: Request, before: Request, tracer: Tracer) -> bool:
    then, now = phases(after, tracer), phases(before, tracer)
    troubles = sum(bool(p.trouble) for p in then) - sum(bool(p.trouble) for p in now)
    return troubles < 0 or (troubles == 0 and _overrun(after, then) < _overrun(before, now))


def _checkpointing(request: Request, _: Tracer) -> Iterator[_Step]:
    if not request.config.model.gradient_checkpointing:
        config = changed(request.config, "model.gradient_checkpointing", True)
        yield _Step("model.gradient_checkpointing=true", "a third more time", replace(request, config=config))


def _shard(request: Request, _: Tracer) -> Iterator[_Step]:
    if request.strategy == "ddp":
        yield _Step("--parallel fsdp", "weights cross the links", replace(request, strategy="fsdp"))


def _share(request: Request, tracer: Tracer) -> Iterator[_Step]:
    """The largest share for vLLM with which all phases run."""
    config = request.config
    if not isinstance(config, PolicyConfig) or config.rollouts.engine != "vllm" or request.servers:
        return
    for percent in range(90, 5, -5):
        share = percent / 100
        tried = replace(request, config=changed(config, "rollouts.gpu_memory_share", share))
        if share != config.rollouts.gpu_memory_share and fits(phases(tried, tracer)):
            yield _Step(f"rollouts.gpu_memory_share={share:g}", "answers under way at once", tried)
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
        yield _Step(f"tokens_per_batch={longest}", "none in what is learnt", replace(request, config=config))


def _servers(request: Request, tracer: Tracer) -> Iterator[_Step]:
    """Rollouts on the fewest further cards that hold the engine."""
    config = request.config
    if not isinstance(config, PolicyConfig):
        return
    now = engine_of(request, tracer) if request.servers else None
    if now is not None and now.memory.at_once:
        return
    elsewhere = changed(config, "rollouts.engine", "servers")
    words = "" if config.rollouts.engine == "servers" else "rollouts.engine=servers "
    card = (request.servers or request.cluster).card
    for count in (1, 2, 4, 8):
        there = Cluster(card, count, len(config.rollouts.servers) or 1)
        tried = replace(request, config=elsewhere, servers=there)
        engine = engine_of(tried, tracer)
        if engine is not None and engine.memory.at_once:
            price = "one more card" if there.count == 1 else f"{there.count} cards for rollouts"
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
"""Changes from the mildest to the harshest."""
