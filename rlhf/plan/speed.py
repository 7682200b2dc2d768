"""Estimated tokens per second, hours and dollars, from traced FLOPs and stated assumptions.

    seconds of a phase  = max(FLOPs / (peak x utilisation), bytes gathered / link)

For a decoding step of the engine see `rlhf.plan.memory.engine`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlhf.config.policy import PolicyConfig
from rlhf.config.reward import RewardConfig, StageConfig
from rlhf.config.schema import DataSource
from rlhf.plan.gpus import NODE_LINK, PCIE
from rlhf.plan.memory.engine import decode_seconds, weight_bytes
from rlhf.plan.memory.phases import PASSES, Engine, Tracer, engine_of, model_facts
from rlhf.plan.memory.sharding import moved_bytes
from rlhf.plan.memory.trace import WEIGHTS
from rlhf.plan.request import Assumptions, Request, row_of

KNOWN_ROWS = {
    ("nvidia/HelpSteer2", "helpsteer2"): 20_324,
    ("nvidia/HelpSteer2", "helpsteer2-preference"): 6_766,
}
"""(Data set, format): items of the training split, as the recipes use it (NeMo-Aligner's documentation)."""


FOUR_BIT_ROLLOUTS = (2.0, 1.5)
"""Sampling time of a 4-bit base relative to bfloat16, worst and best case (QeRL, arXiv 2510.11696)."""


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


def bill(request: Request, tracer: Tracer, assumed: Assumptions) -> Bill | None:
    """Time and price; None if the GPU is known by its memory only."""
    if request.cluster.gpu.tflops is None or (request.servers and request.servers.gpu.tflops is None):
        return None
    config = request.config
    if isinstance(config, RewardConfig):
        tokens, updates = _reward_work(config, assumed)
        items = {"update": tokens, "validation": _validation_tokens(config, assumed)}
    else:
        tokens, updates = _policy_tokens(config, assumed), config.steps
        trained = tokens * config.algorithm.epochs
        items = {
            "scoring": tokens * len(config.reward_folders),
            "log-probabilities": tokens,
            "update": trained,
            "critic": trained if config.algorithm.critic else 0,
        }
    counted = updates or 1000
    engine = engine_of(request, tracer)
    seconds: dict[str, list[float]] = {}
    answered = 0.0
    for utilisation, slower in zip(assumed.utilisation, FOUR_BIT_ROLLOUTS, strict=True):
        if isinstance(config, PolicyConfig) and engine is not None:
            taken, answered = _rollout_seconds(config, tracer, engine, assumed, utilisation)
            four_bits = slower if config.model.quantization == "nf4" else 1.0
            seconds.setdefault("rollouts", []).append(taken * four_bits)
        for name, phase_tokens in items.items():
            if phase_tokens:
                taken = _seconds(request, tracer, utilisation, name, phase_tokens)
                seconds.setdefault(name, []).append(taken)
    tokens_of = {"rollouts": answered, **items}
    speeds = [
        Speed(name, tokens_of[name] / best, counted * best / 3600, counted * worst / 3600)
        for name, (worst, best) in seconds.items()
    ]
    prices = [(cluster.count, cluster.gpu.price) for cluster in (request.cluster, request.servers) if cluster]
    known = all(price is not None for _, price in prices)
    rate = sum(count * (price or 0.0) for count, price in prices) if known else None
    best = _hours(config, [speed.hours for speed in speeds])
    worst = _hours(config, [speed.most_hours for speed in speeds])
    return Bill(
        phases=speeds,
        updates=updates,
        hours=best,
        dollars=None if rate is None else best * rate,
        most_hours=worst,
        most_dollars=None if rate is None else worst * rate,
        per="the run" if updates else "1,000 updates",
        at_once=engine.memory.at_once if engine else None,
        parallel=engine.parallel if engine else 1,
    )


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
    gathers = {"update": 3 if row.checkpointing else 2, "measuring": 3 if row.critic else 1}
    passes = gathers.get("update" if name == "critic" else traced_pass, 1)
    weights = traced.peaks[traced_pass].kinds[WEIGHTS]
    moved = moved_bytes(request.strategy, model_facts(request, tracer), weights, cluster.count, passes)
    link = min(cluster.link, PCIE) if request.strategy == "fsdp-offload" else cluster.link
    # A GPU with less than a row still gathers all weights; a validation is spread over many updates.
    passes_over = rows if name == "validation" else max(1.0, rows)
    return max(computing, passes_over * moved / (link * 1e9))


def _reward_work(config: RewardConfig, assumed: Assumptions) -> tuple[float, int | None]:
    """Mean tokens of an update, and updates of all stages; None where the size of a data set is not known."""
    steps = [_steps(config, stage) for stage in config.stages]
    known = [count for count in steps if count is not None]
    updates = sum(known) if len(known) == len(steps) else None
    weights = known if updates else [1] * len(config.stages)
    items = sum(stage.batch_size * w for stage, w in zip(config.stages, weights, strict=True)) / sum(weights)
    return items * assumed.item(config), updates


def _validation_tokens(config: RewardConfig, assumed: Assumptions) -> float:
    """Held-out tokens of a validation per update; data sets of unknown size count 0."""
    sources = [*config.data.ratings, *config.data.preferences]
    rows = sum(_rows(source) or 0 for source in sources) / max(1, len(config.stages))
    return rows * config.data.validation_share * assumed.item(config) / config.validate_every


def _steps(config: RewardConfig, stage: StageConfig) -> int | None:
    """Updates of a stage; None where neither `max_steps` nor the sizes of the data sets are known."""
    sources = [
        *(config.data.ratings if stage.regression_weight else ()),
        *(config.data.preferences if stage.preference_weight else ()),
    ]
    rows = [_rows(source) for source in sources]
    if any(count is None for count in rows):
        return stage.max_steps
    items = sum(count or 0 for count in rows) * (1 - config.data.validation_share)
    steps = math.ceil(items * stage.epochs / stage.batch_size)
    return min(steps, stage.max_steps) if stage.max_steps else steps


def _rows(source: DataSource) -> int | None:
    known = KNOWN_ROWS.get((source.path, source.format))
    return source.limit if known is None else min(known, source.limit or known)


def _policy_tokens(config: PolicyConfig, assumed: Assumptions) -> float:
    """Tokens of an update: each prompt once, and its answers; without packing the prompt with each answer."""
    prompt, answer = assumed.lengths(config)
    rollouts = config.rollouts
    prompts = 1 if config.model.packing else rollouts.samples_per_prompt
    return rollouts.prompts_per_step * (prompts * prompt + rollouts.samples_per_prompt * answer)


def _rollout_seconds(
    config: PolicyConfig, tracer: Tracer, engine: Engine, assumed: Assumptions, utilisation: float
) -> tuple[float, float]:
    """Seconds of an update's rollouts, and their sampled tokens.

    Prefill, then decoding in turns of as many answers as fit into the cache.
    """
    prompt, answer = assumed.lengths(config)
    answers = config.rollouts.prompts_per_step * config.rollouts.samples_per_prompt
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
        engine.memory,
        sequences=min(answers, together) // engine.replicas or 1,
        context=prompt + answer / 2,
        bandwidth=gpu.bandwidth * 1e9,
        flops=flops,
        parameters=parameters,
    )
    reading = 2 * parameters * config.rollouts.prompts_per_step * prompt / (flops * engine.replicas)
    # In sleep mode the engine's weights move to host memory after rollouts, and back before the next.
    moving = 2 * engine.memory.weights / (PCIE * 1e9) if config.rollouts.sleep else 0.0
    return reading + turns * answer * step + moving, answers * answer


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
    return {
        "lengths": lengths,
        "utilisation": (
            f"{percent(assumed.utilisation)} of the data sheet's peak, recomputation included (--utilisation)"
        ),
        "links": (
            f"{request.cluster.gpu.link:g} GB/s between GPUs of a machine, {NODE_LINK:g} between machines"
        ),
    }
