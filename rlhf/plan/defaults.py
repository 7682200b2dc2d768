"""Settings that fit a GPU, chosen by the plan where a config leaves them unset.

    tokens_per_batch                 the largest of `BUDGETS` with which each phase leaves `SPARE` of the GPU
    free
    rollouts.max_num_batched_tokens  by the GPU's memory
    rollouts.gpu_memory_share        the largest with which each phase fits, then lowered as far as the number
    of
                                     answers sampled at once stays the same

The result of training does not depend on them. Without a GPU the defaults of the config apply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rlhf.config.policy import PolicyConfig
from rlhf.plan.gpus import GIB
from rlhf.plan.memory.phases import Phase, Tracer, engine_of, phases
from rlhf.plan.request import Request, changed, longest_tree

BUDGETS = (16_384, 8192, 4096, 2048, 1024)
SPARE = 0.05
SHARES = tuple(percent / 100 for percent in range(90, 9, -5))
STEPS = ((70 * GIB, 8192), (30 * GIB, 4096), (0, 2048))
"""(Least bytes of GPU memory, tokens of an engine's step), the largest GPU first."""


def chosen(request: Request, tracer: Tracer) -> tuple[Request, Mapping[str, Any]]:
    """The request with unset keys filled in, and these settings; of an engine's step alone where nothing
    fits."""
    set_keys = _set_keys(request.config)
    taken: dict[str, Any] = {}
    if isinstance(request.config, PolicyConfig) and "rollouts.max_num_batched_tokens" not in set_keys:
        memory = request.cluster.gpu.memory
        taken["rollouts.max_num_batched_tokens"] = next(size for least, size in STEPS if memory >= least)
    request = _with(request, taken)
    budgets = (request.config.tokens_per_batch,) if "tokens_per_batch" in set_keys else _budgets(request)
    shares = SHARES if _chooses_share(request, set_keys) else (None,)
    for budget in budgets:
        for share in shares:
            tried = {"tokens_per_batch": budget} | ({"rollouts.gpu_memory_share": share} if share else {})
            there = _with(request, tried)
            if all(_fits(phase) for phase in phases(there, tracer)):
                taken |= _smallest_share(there, tracer, shares, tried)
                return _with(request, taken), {
                    key: value for key, value in taken.items() if key not in set_keys
                }
    return request, taken


def _budgets(request: Request) -> tuple[int, ...]:
    """Budgets above the longest item, and the next one below: smaller ones make the same row."""
    longest = longest_tree(request.config)
    above = tuple(budget for budget in BUDGETS if budget > longest)
    below = next((budget for budget in BUDGETS if budget <= longest), None)
    return above if below is None else (*above, below)


def _smallest_share(
    request: Request, tracer: Tracer, shares: tuple[float | None, ...], tried: dict[str, Any]
) -> dict[str, Any]:
    """The lowest share with which the engine still holds as many answers at once."""
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


def _chooses_share(request: Request, set_keys: set[str]) -> bool:
    config = request.config
    in_process = isinstance(config, PolicyConfig) and config.rollouts.engine == "vllm"
    return in_process and request.servers is None and "rollouts.gpu_memory_share" not in set_keys


def _fits(phase: Phase) -> bool:
    return phase.fits and phase.total <= (1 - SPARE) * phase.capacity


def _with(request: Request, values: Mapping[str, Any]) -> Request:
    config = request.config
    for key, value in values.items():
        config = changed(config, key, value)
    return replace(request, config=config)


def _set_keys(config: Any) -> set[str]:
    """The keys chosen here that the config's file or the command line sets."""
    keys = {key for key in ("tokens_per_batch",) if key in config.model_fields_set}
    if isinstance(config, PolicyConfig):
        keys |= {f"rollouts.{key}" for key in config.rollouts.model_fields_set}
    return keys
