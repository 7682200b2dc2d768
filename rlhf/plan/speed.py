"""Tokens a second, hours and dollars: FLOPs from the trace, the rest stated assumptions.

seconds of a phase  = max(FLOPs / (peak x utilisation), bytes gathered / link)
seconds of a step of the engine: see rlhf.plan.engine
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlhf.config.policy import PolicyConfig
from rlhf.config.reward import RewardConfig, StageConfig
from rlhf.config.schema import DataSource
from rlhf.plan.engine import decode_seconds, weight_bytes
from rlhf.plan.gpus import NODE_LINK, PCIE
from rlhf.plan.phases import PASSES, Engine, Tracer, engine_of, held
from rlhf.plan.request import Assumptions, Request, row_of
from rlhf.plan.sharding import moved_bytes
from rlhf.plan.trace import WEIGHTS

KNOWN_ROWS = {
    ("nvidia/HelpSteer2", "helpsteer2"): 20_324,
    ("nvidia/HelpSteer2", "helpsteer2-preference"): 6_766,
}
"""Items of public data sets' training splits, as the recipes use them (NeMo-Aligner's documentation)."""


FOUR_BIT_ROLLOUTS = (2.0, 1.5)
"""How much slower than in bfloat16 an engine samples from a base in 4 bits, at worst and at best (QeRL, arXiv 2510.11696)."""


@dataclass(frozen=True)
class Speed:
    """One phase's work."""

    name: str
    tokens_per_second: float
    """At best."""
    hours: float
    """At best."""
    most_hours: float
    """At worst."""


@dataclass(frozen=True)
class Bill:
    """A whole run's time and price; None is not known."""

    phases: list[Speed]
    updates: int | None
    hours: float | None
    """At best, as `dollars`."""
    dollars: float | None
    most_hours: float | None
    """At worst, as `most_dollars`."""
    most_dollars: float | None
    per: str
    """What hours and dollars are of."""
    at_once: int | None = None
    """Answers under way together in one engine."""
    parallel: int = 1
    """Cards of one engine."""


def bill(request: Request, tracer: Tracer, told: Assumptions) -> Bill | None:
    """Time and price; None where the card's speed is not known (a plain size)."""
    card = request.cluster.card
    if card.tflops is None or (request.servers and request.servers.card.tflops is None):
        return None
    config = request.config
    if isinstance(config, RewardConfig):
        tokens, updates = _reward_work(config, told)
        items = {"update": tokens, "validation": _validation_tokens(config, told)}
    else:
        tokens, updates = _policy_tokens(config, told), config.steps
        learnt = tokens * config.algorithm.epochs
        items = {
            "scoring": tokens * len(config.reward_folders),
            "log-probabilities": tokens,
            "update": learnt,
            "critic": learnt if config.algorithm.critic else 0,
        }
    counted = updates or 1000
    engine = engine_of(request, tracer)
    seconds: dict[str, list[float]] = {}
    answered = 0.0
    for utilisation, slower in zip(told.utilisation, FOUR_BIT_ROLLOUTS, strict=True):
        if isinstance(config, PolicyConfig) and engine is not None:
            taken, answered = _rollout_seconds(config, tracer, engine, told, utilisation)
            four_bits = slower if config.model.quantization == "nf4" else 1.0
            seconds.setdefault("rollouts", []).append(taken * four_bits)
        for name, of_update in items.items():
            if of_update:
                taken = _seconds(request, tracer, utilisation, name, of_update)
                seconds.setdefault(name, []).append(taken)
    tokens_of = {"rollouts": answered, **items}
    speeds = [
        Speed(name, tokens_of[name] / best, counted * best / 3600, counted * worst / 3600)
        for name, (worst, best) in seconds.items()
    ]
    prices = [
        (cluster.count, cluster.card.price) for cluster in (request.cluster, request.servers) if cluster
    ]
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
    """All phases one after another; with `overlap`, rollouts, which come first, beside the others."""
    if isinstance(config, PolicyConfig) and config.rollouts.overlap:
        return max(times[0], sum(times[1:]))
    return sum(times)


def _seconds(request: Request, tracer: Tracer, utilisation: float, name: str, tokens: float) -> float:
    """Seconds of a trainer's phase over the tokens of an update, which all cards share: computing, or waiting for weights."""
    row = row_of(request.config)
    traced, cluster = tracer(row), request.cluster
    passed = PASSES.get(name, name)
    assert cluster.card.tflops is not None
    rows = tokens / cluster.count / row.tokens
    computing = rows * traced.flops[passed] / (cluster.card.tflops * 1e12 * utilisation)
    gathers = {"update": 3 if row.checkpointing else 2, "measuring": 3 if row.critic else 1}
    passes = gathers.get("update" if name == "critic" else passed, 1)
    weights = traced.peaks[passed].kinds[WEIGHTS]
    moved = moved_bytes(request.strategy, held(request, tracer), weights, cluster.count, passes)
    link = min(cluster.link, PCIE) if request.strategy == "fsdp-offload" else cluster.link
    # A card with less than a row to do gathers the weights all the same; validations are far between.
    passes_over = rows if name == "validation" else max(1.0, rows)
    return max(computing, passes_over * moved / (link * 1e9))


def _reward_work(config: RewardConfig, told: Assumptions) -> tuple[float, int | None]:
    """Mean tokens of an update, and updates of all stages; None where a data set's size is not known here."""
    steps = [_steps(config, stage) for stage in config.stages]
    known = [count for count in steps if count is not None]
    updates = sum(known) if len(known) == len(steps) else None
    weights = known if updates else [1] * len(config.stages)
    items = sum(stage.batch_size * w for stage, w in zip(config.stages, weights, strict=True)) / sum(weights)
    return items * told.item(config), updates


def _validation_tokens(config: RewardConfig, told: Assumptions) -> float:
    """Held-out tokens read, spread over the updates between two validations; unknown data sets count as none."""
    sources = [*config.data.ratings, *config.data.preferences]
    rows = sum(_rows(source) or 0 for source in sources) / max(1, len(config.stages))
    return rows * config.data.validation_share * told.item(config) / config.validate_every


def _steps(config: RewardConfig, stage: StageConfig) -> int | None:
    """Updates of a stage, as far as the config and the data sets known here tell."""
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


def _policy_tokens(config: PolicyConfig, told: Assumptions) -> float:
    """Packed tokens of an update: every prompt once, and its answers."""
    prompt, answer = told.lengths(config)
    rollouts = config.rollouts
    return rollouts.prompts_per_step * (prompt + rollouts.samples_per_prompt * answer)


def _rollout_seconds(
    config: PolicyConfig, tracer: Tracer, engine: Engine, told: Assumptions, utilisation: float
) -> tuple[float, float]:
    """Seconds of an update's rollouts, and the tokens answered: prompts read once, then one token a step, in turns."""
    prompt, answer = told.lengths(config)
    answers = config.rollouts.prompts_per_step * config.rollouts.samples_per_prompt
    card = engine.cluster.card
    # vLLM admits answers by the blocks they fill, so the mean length counts here, and not the greatest.
    fitting = engine.memory.cache // (engine.memory.token_bytes * (prompt + answer))
    together = max(1, fitting) * engine.replicas
    assert card.tflops is not None
    assert card.bandwidth is not None
    flops = engine.parallel * card.tflops * 1e12 * utilisation
    parameters = weight_bytes(tracer.shape, 1, "none")
    turns = max(1.0, answers / together)
    step = decode_seconds(
        engine.memory,
        sequences=min(answers, together) // engine.replicas or 1,
        context=prompt + answer / 2,
        bandwidth=card.bandwidth * 1e9,
        flops=flops,
        parameters=parameters,
    )
    reading = 2 * parameters * config.rollouts.prompts_per_step * prompt / (flops * engine.replicas)
    # In sleep mode the engine's weights leave the GPU after rollouts, and come back before the next.
    moving = 2 * engine.memory.weights / (PCIE * 1e9) if config.rollouts.sleep else 0.0
    return reading + turns * answer * step + moving, answers * answer


def percent(range_: tuple[float, float]) -> str:
    """A range of shares: `18 to 35 %`, or `30 %` where both are the same."""
    least, greatest = (f"{100 * share:g}" for share in range_)
    return f"{greatest} %" if least == greatest else f"{least} to {greatest} %"


def between(least: float, most: float, form: str = ",.1f") -> str:
    """Two numbers as a range, or one where they look alike."""
    low, high = format(least, form), format(most, form)
    return low if low == high else f"{low} to {high}"


def assumptions(request: Request, told: Assumptions) -> Mapping[str, str]:
    """What was assumed, in words."""
    config = request.config
    lengths = (
        f"{told.item(config):,} tokens a pair or rated response (--item-tokens)"
        if isinstance(config, RewardConfig)
        else "{} tokens a prompt, {} an answer (--prompt-tokens, --answer-tokens)".format(
            *told.lengths(config)
        )
    )
    return {
        "lengths": lengths,
        "utilisation": f"{percent(told.utilisation)} of the data sheet's peak, recomputation included (--utilisation)",
        "links": f"{request.cluster.card.link:g} GB/s between cards of a machine, {NODE_LINK:g} between machines",
    }
