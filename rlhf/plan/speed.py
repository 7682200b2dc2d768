"""Estimated tokens per second, hours and dollars, from traced FLOPs and stated assumptions.

    seconds of a phase  = max(FLOPs / (peak x utilisation), bytes gathered / link)

For a decoding step see `rlhf.plan.memory.engine`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rlhf.config.policy import PolicyConfig
from rlhf.config.reward import RewardConfig
from rlhf.plan.gpus import NODE_LINK, PCIE
from rlhf.plan.memory.engine import decode_seconds, token_bytes, weight_bytes
from rlhf.plan.memory.phases import PASSES, Engine, Tracer, adapter_bytes, engine_of, itemsize, model_facts
from rlhf.plan.memory.sharding import moved_bytes
from rlhf.plan.memory.trace import WEIGHTS
from rlhf.plan.request import Assumptions, Request, row_of
from rlhf.plan.work import joins, work

FOUR_BIT_ROLLOUTS = (2.0, 1.5)
"""Sampling time of a 4-bit base relative to bfloat16, worst and best case (QeRL, arXiv 2510.11696)."""
Sampler = Literal["vllm", "paged", "padded"]
"""vLLM, transformers' continuous batching, or its `generate` on a padded batch."""
ROLLOUTS_ASSUMED: Mapping[Sampler, str] = {
    "paged": "rollouts with flash attention, where each answer reads its own cache (with SDPA each reads all "
    "caches, which may be several times slower)",
    "padded": "rollouts by `generate` until the longest answer of a batch ends (at best the mean, at worst "
    "rollouts.max_new_tokens), without the time to launch kernels, which may be several times as long",
}
"""What the hours of rollouts assume."""


@dataclass(frozen=True)
class Speed:
    """Speed and time of one phase."""

    name: str
    tokens_per_second: float
    """At best."""
    hours: float
    """At best."""
    most_hours: float
    """At worst."""


@dataclass(frozen=True)
class Bill:
    """Time and price of a run; None where not known."""

    phases: list[Speed]
    updates: int | None
    hours: float | None
    """At best, as `dollars`."""
    dollars: float | None
    most_hours: float | None
    """At worst, as `most_dollars`."""
    most_dollars: float | None
    per: str
    """The unit of hours and dollars: the run, or 1,000 updates."""
    at_once: int | None = None
    """Answers that one engine samples concurrently."""
    parallel: int = 1
    """GPUs of one engine."""
    sampler: Sampler | None = None
    """What samples; None for a reward model."""


def bill(request: Request, tracer: Tracer, assumed: Assumptions) -> Bill | None:
    """Time and price; None if the GPU is known by its memory only."""
    if request.cluster.gpu.tflops is None or (request.servers and request.servers.gpu.tflops is None):
        return None
    config = request.config
    items, updates = work(config, assumed)
    counted = updates or 1000
    engine = engine_of(request, tracer)
    seconds: dict[str, list[float]] = {}
    for worst, utilisation in zip((True, False), assumed.utilisation, strict=True):
        for name, tokens in items.items():
            if name == "rollouts":
                taken = _rollout_seconds(request, tracer, engine, assumed, utilisation, worst=worst)
            else:
                taken = _seconds(request, tracer, utilisation, name, tokens)
            seconds.setdefault(name, []).append(taken)
    speeds = [
        Speed(name, items[name] / least, counted * least / 3600, counted * most / 3600)
        for name, (most, least) in seconds.items()
    ]
    prices = [(cluster.count, cluster.gpu.price) for cluster in (request.cluster, request.servers) if cluster]
    known = all(price is not None for _, price in prices)
    rate = sum(count * (price or 0.0) for count, price in prices) if known else None
    least = _hours(config, [speed.hours for speed in speeds])
    most = _hours(config, [speed.most_hours for speed in speeds])
    return Bill(
        phases=speeds,
        updates=updates,
        hours=least,
        dollars=None if rate is None else least * rate,
        most_hours=most,
        most_dollars=None if rate is None else most * rate,
        per="the run" if updates else "1,000 updates",
        at_once=engine.memory.at_once if engine else None,
        parallel=engine.parallel if engine else 1,
        sampler=_sampler(config, engine),
    )


def _sampler(config: RewardConfig | PolicyConfig, engine: Engine | None) -> Sampler | None:
    if isinstance(config, RewardConfig):
        return None
    if engine is None:
        return "padded"
    return "paged" if engine.paged else "vllm"


def _hours(config: RewardConfig | PolicyConfig, times: Sequence[float]) -> float:
    """The sum of all phases; with `overlap`, rollouts (the first) run at the same time as the others."""
    if isinstance(config, PolicyConfig) and config.rollouts.overlap:
        return max(times[0], sum(times[1:]))
    return sum(times)


def _seconds(request: Request, tracer: Tracer, utilisation: float, name: str, tokens: float) -> float:
    """Seconds of a trainer's phase over an update's tokens: the larger of compute and communication."""
    row = row_of(request.config)
    traced, cluster = tracer(row), request.cluster
    traced_pass = PASSES.get(name, name)
    assert cluster.gpu.tflops is not None
    rows = tokens / cluster.count / row.tokens
    computing = rows * traced.flops[traced_pass] / (cluster.gpu.tflops * 1e12 * utilisation)
    # A backward pass gathers a layer once, also where it recomputes it (torch's `FSDPState._pre_forward`).
    gathers = {"update": 2, "critic": 2, "measuring": 3 if row.critic else 1}
    # A GPU with less than a row still gathers all weights; a validation is spread over many updates.
    passes_over = rows if name == "validation" else max(1.0, rows)
    return max(computing, passes_over * _gather_seconds(request, tracer, gathers.get(traced_pass, 1)))


def _gather_seconds(request: Request, tracer: Tracer, passes: int) -> float:
    """Seconds in which a GPU receives the weights of `passes` passes; 0 where they are not sharded."""
    cluster, weights = request.cluster, tracer(row_of(request.config)).peaks["update"].kinds[WEIGHTS]
    moved = moved_bytes(request.strategy, model_facts(request, tracer), weights, cluster.count, passes)
    link = min(cluster.link, PCIE) if request.strategy == "fsdp-offload" else cluster.link
    return moved / (link * 1e9)


def _rollout_seconds(
    request: Request,
    tracer: Tracer,
    engine: Engine | None,
    assumed: Assumptions,
    utilisation: float,
    *,
    worst: bool,
) -> float:
    """Seconds of an update's rollouts."""
    config = request.config
    assert isinstance(config, PolicyConfig)
    slower = 1.0
    if config.model.quantization == "nf4":
        slower = FOUR_BIT_ROLLOUTS[0] if worst else FOUR_BIT_ROLLOUTS[1]
    if engine is not None:
        return _engine_seconds(config, tracer, engine, assumed.lengths(config), utilisation, slower)
    # The longest prompt and the longest answer of a padded batch set the length of all.
    longest = (config.data.max_prompt_tokens, config.rollouts.max_new_tokens)
    lengths = longest if worst else assumed.lengths(config)
    return _padded_seconds(request, config, tracer, lengths, utilisation, slower)


def _engine_seconds(
    config: PolicyConfig,
    tracer: Tracer,
    engine: Engine,
    lengths: tuple[int, int],
    utilisation: float,
    slower: float,
) -> float:
    """Prefill, then decoding in turns of as many answers as fit into the cache.

    Args:
        lengths: mean tokens of a prompt and of an answer.
        slower: sampling time relative to an unquantized base.
    """
    prompt, answer = lengths
    answers = config.rollouts.answers
    gpu = engine.cluster.gpu
    # vLLM admits sequences by the blocks they fill, so their mean length counts, not the maximum.
    fitting = engine.memory.cache // (engine.memory.token_bytes * (prompt + answer))
    together = max(1, fitting) * engine.replicas
    assert gpu.tflops is not None
    assert gpu.bandwidth is not None
    flops = engine.parallel * gpu.tflops * 1e12 * utilisation
    parameters = weight_bytes(tracer.shape, 1, "none")
    turns = max(1.0, answers / together)
    step = decode_seconds(
        weights=parameters * itemsize(config) // engine.parallel + adapter_bytes(config, tracer),
        token_bytes=engine.memory.token_bytes,
        sequences=min(answers, together) // engine.replicas or 1,
        context=prompt + answer / 2,
        bandwidth=gpu.bandwidth * 1e9,
        flops=flops,
        parameters=parameters,
    )
    reading = 2 * parameters * config.rollouts.prompts_per_step * prompt / (flops * engine.replicas)
    # In sleep mode the engine's weights move to host memory after rollouts, and back before the next.
    moving = 2 * engine.memory.weights / (PCIE * 1e9) if config.rollouts.sleep else 0.0
    return slower * (reading + turns * answer * step) + moving


def _padded_seconds(
    request: Request,
    config: PolicyConfig,
    tracer: Tracer,
    lengths: tuple[int, int],
    utilisation: float,
    slower: float,
) -> float:
    """transformers' `generate`: a pass over the prompt of every answer, then a step for each token.

    Under FSDP2 the pass and each step gather all weights.

    Args:
        lengths: tokens of every prompt and of every answer, padding included.
        slower: sampling time relative to an unquantized base.
    """
    prompt, answer = lengths
    rollouts, gpu = config.rollouts, request.cluster.gpu
    answers = max(1, rollouts.answers // request.cluster.count)
    assert gpu.tflops is not None
    assert gpu.bandwidth is not None
    flops = gpu.tflops * 1e12 * utilisation
    parameters = weight_bytes(tracer.shape, 1, "none")
    step = decode_seconds(
        weights=parameters * itemsize(config) + adapter_bytes(config, tracer),
        token_bytes=token_bytes(tracer.shape, itemsize(config)),
        sequences=answers,
        context=prompt + answer / 2,
        bandwidth=gpu.bandwidth * 1e9,
        flops=flops,
        parameters=parameters,
    )
    reading = 2 * parameters * answers * prompt / flops
    gathering = _gather_seconds(request, tracer, 1)
    return max(slower * reading, gathering) + answer * max(slower * step, gathering)


def percent(range_: tuple[float, float]) -> str:
    """A range of shares: `18 to 35 %`, or `30 %` where both are the same."""
    least, greatest = (f"{100 * share:g}" for share in range_)
    return f"{greatest} %" if least == greatest else f"{least} to {greatest} %"


def between(least: float, most: float, form: str = ",.1f") -> str:
    """Two numbers as a range; a single one where both are formatted alike."""
    low, high = format(least, form), format(most, form)
    return low if low == high else f"{low} to {high}"


def assumptions(request: Request, assumed: Assumptions) -> Mapping[str, str]:
    """The assumptions, as text."""
    config = request.config
    lengths = (
        f"{assumed.item(config):,} tokens a pair or rated response (--item-tokens)"
        if isinstance(config, RewardConfig)
        else "{} tokens a prompt, {} an answer (--prompt-tokens, --answer-tokens)".format(
            *assumed.lengths(config)
        )
    )
    joined = {"responses": "ratings and pairs of the same responses, two a prompt"} if joins(config) else {}
    return {
        "lengths": lengths,
        **joined,
        "utilisation": (
            f"{percent(assumed.utilisation)} of the data sheet's peak, recomputation included (--utilisation)"
        ),
        "links": (
            f"{request.cluster.gpu.link:g} GB/s between GPUs of a machine, {NODE_LINK:g} between machines"
        ),
    }
