"""Settings that fit a GPU, chosen by the plan's own arithmetic where a config leaves them unset.

    tokens_per_batch                 the largest of `BUDGETS` with which every phase leaves `SPARE` of the GPU free
    rollouts.max_num_batched_tokens  by the GPU's memory
    rollouts.gpu_memory_share        the largest with which every phase fits, lowered while as many answers are under way at once

What a run learns does not depend on them. Without a GPU a config's own defaults stand, which are made for CPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rlhf.config.policy import PolicyConfig
from rlhf.plan.gpus import GIB
from rlhf.plan.phases import Phase, Tracer, engine_of, phases
from rlhf.plan.request import Request, changed, longest_tree

BUDGETS = (16_384, 8192, 4096, 2048, 1024)
SPARE = 0.05
SHARES = tuple(percent / 100 for percent in range(90, 9, -5))
STEPS = ((70 * GIB, 8192), (30 * GIB, 4096), (0, 2048))
"""Memory of a GPU, from the largest: tokens of an engine's step there."""


def chosen(request: Request, tracer: Tracer) -> tuple[Request, Mapping[str, Any]]:
    """The request with what its config leaves unset, and these settings by key; both as they were where nothing fits."""
    given = _set_keys(request.config)
    taken: dict[str, Any] = {}
    if isinstance(request.config, PolicyConfig) and "rollouts.max_num_batched_tokens" not in given:
        memory = request.cluster.card.memory
        taken["rollouts.max_num_batched_tokens"] = next(size for least, size in STEPS if memory >= least)
    request = _with(request, taken)
    budgets = (request.config.tokens_per_batch,) if "tokens_per_batch" in given else _budgets(request)
    shares = SHARES if _chooses_share(request, given) else (None,)
    for budget in budgets:
        for share in shares:
            tried = {"tokens_per_batch": budget} | ({"rollouts.gpu_memory_share": share} if share else {})
            there = _with(request, tried)
            if all(_fits(phase) for phase in phases(there, tracer)):
                taken |= _smallest_share(there, tracer, shares, tried)
                return _with(request, taken), {key: value for key, value in taken.items() if key not in given}
    return request, {}


def _budgets(request: Request) -> tuple[int, ...]:
    """Budgets that differ in the row they make: whatever is longest is never cut."""
    longest = longest_tree(request.config)
    above = tuple(budget for budget in BUDGETS if budget > longest)
    below = next((budget for budget in BUDGETS if budget <= longest), None)
    return above if below is None else (*above, below)


def _smallest_share(
    request: Request, tracer: Tracer, shares: tuple[float | None, ...], tried: dict[str, Any]
) -> dict[str, Any]:
    """The share lowered while the engine holds as many answers at once: what it does not need is the trainer's."""
    engine = engine_of(request, tracer)
    if "rollouts.gpu_memory_share" not in tried or engine is None:
        return tried
    for share in shares:
        if share is None or share >= tried["rollouts.gpu_memory_share"]:
            continue
        lower = tried | {"rollouts.gpu_memory_share": share}
        smaller = engine_of(_with(request, lower), tracer)
        if smaller is None or smaller.memory.at_once < engine.memory.at_once:
            break
        tried = lower
    return tried


def _chooses_share(request: Request, given: set[str]) -> bool:
    config = request.config
    in_process = isinstance(config, PolicyConfig) and config.rollouts.engine == "vllm"
    return in_process and request.servers is None and "rollouts.gpu_memory_share" not in given


def _fits(phase: Phase) -> bool:
    return phase.fits and phase.total <= (1 - SPARE) * phase.card


def _with(request: Request, values: Mapping[str, Any]) -> Request:
    config = request.config
    for key, value in values.items():
        config = changed(config, key, value)
    return replace(request, config=config)


def _set_keys(config: Any) -> set[str]:
    """The keys that the config's file or the command line set, of those chosen here."""
    keys = {key for key in ("tokens_per_batch",) if key in config.model_fields_set}
    if isinstance(config, PolicyConfig):
        keys |= {f"rollouts.{key}" for key in config.rollouts.model_fields_set}
    return keys
