"""Checks of memory: of GPUs and of the machine, by the plan or by the weights; none without a config."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf.doctor.checks_machine import gpu_count
from rlhf.doctor.facts import GIB, Facts, Run, Shape, Torch
from rlhf.doctor.results import Finding, size
from rlhf.plan.memory import weights

FLOAT32 = 4
ALL_TRAINED = "in float32: trained, frozen, gradients and AdamW's two moments"
BUSY = 0.7
"""Share of memory taken by weights above which activations will hardly fit."""


def base_bytes(shape: Shape, dtype: str, quantization: str) -> int:
    """Bytes of the base in memory; embeddings and head are never in 4 bits."""
    return weights.base_bytes(shape.parameters, shape.linear, dtype, quantization)


def memory(facts: Facts) -> Iterator[Finding]:
    """Whether the weights fit on a GPU or, without one, in memory."""
    if facts.run is None or (facts.torch is None and facts.host.nvidia):
        return
    base = _weights(facts.run)
    if base is None:
        return
    trainer = _trainer(facts.run, base)
    rollouts = getattr(facts.run.config, "rollouts", None)
    engine = rollouts is not None and rollouts.engine == "vllm"
    if isinstance(facts.torch, Torch) and facts.torch.gpus:
        if facts.run.planned:
            yield _planned(facts.run)
            return
        share = rollouts.gpu_memory_share if rollouts is not None and engine else 0.0
        smallest = min(gpu.memory for gpu in facts.torch.gpus)
        yield _gpu_memory(trainer, base, smallest, share, gpu_count(facts))
        return
    need, available = trainer + (base if engine else 0), facts.host.memory
    copies = " in two copies" if engine else ""
    if trainer != base:
        copies = f" ({ALL_TRAINED}" + (", and the engine's copy)" if engine else ")")
    found = f"{size(need)} of weights{copies}, {size(available)} of memory"
    smaller = "an adapter" if trainer != base else "model.quantization=nf4"
    fix = f"a smaller base, {smaller}, or a larger machine"
    if need > available:
        yield Finding("Memory", "problem", found, fix)
    elif need > BUSY * available:
        yield Finding("Memory", "warning", f"{found}: little is left for the steps", fix)
    else:
        yield Finding("Memory", "ok", found)


def _planned(run: Run) -> Finding:
    """The tightest phase of `rlhf plan` on these GPUs."""
    worst = max(run.planned, key=lambda phase: (bool(phase.trouble), phase.total - phase.memory))
    found = f"{worst.name} needs {size(worst.total)} of {size(worst.memory)} (rlhf plan)"
    if worst.trouble or worst.total > worst.memory:
        why = f": {worst.trouble}" if worst.trouble else ""
        return Finding("GPU memory", "problem", f"{found}{why}", f"rlhf plan CONFIG --gpus {run.gpus}")
    return Finding("GPU memory", "ok", found)


def loading(facts: Facts) -> Iterator[Finding]:
    """Whether a run fits in host memory, on a machine with GPUs.

    By the plan; before a run, which makes no plan, by the launcher's settings.
    """
    if facts.run is None or not facts.host.nvidia:
        return
    if facts.run.planned_host is not None:
        yield _planned_host(facts.run, facts.run.planned_host, facts.host.memory)
        return
    base = _weights(facts.run)
    if base is None:
        return
    host, quantization = facts.host, facts.run.config.model.quantization
    need = weights.loading_bytes(
        base, quantization, sharded=host.sharded, offloaded=host.offloaded, processes=host.processes
    )
    if not need:
        return
    processes = f"{host.processes} process{'es' if host.processes > 1 else ''}"
    found = f"loading takes up to {size(need)} in {processes}, {size(host.memory)} of memory"
    if need > host.memory:
        fix = "accelerate launch --config_file configs/launch/fsdp2.yaml, fewer processes, or more memory"
        yield Finding("Loading", "problem", found, fix)
    else:
        yield Finding("Loading", "ok", found)


def _planned_host(run: Run, need: int, memory: int) -> Finding:
    """The host memory of `rlhf plan` on these GPUs."""
    found = f"a run takes up to {size(need)} of {size(memory)} of memory (rlhf plan)"
    if need > memory:
        fix = f"rlhf plan CONFIG --gpus {run.gpus} --host-memory {memory // GIB}"
        return Finding("Loading", "problem", found, fix)
    return Finding("Loading", "ok", found)


def _gpu_memory(need: int, served: int, capacity: int, share: float, count: int) -> Finding:
    """Whether the weights of trainer and engine fit on one GPU; `rlhf plan` covers sharding."""
    trainer, engine = (1 - share) * capacity, share * capacity
    whole = f" ({ALL_TRAINED})" if need != served else ""
    found = f"{size(need)} of weights{whole}, {size(capacity)} on a GPU"
    if share:
        found += f", of which {share:.0%} is vLLM's (rollouts.gpu_memory_share)"
    fix = f"{'an adapter, FSDP2' if whole else 'model.quantization=nf4'}, or a larger GPU"
    if need > trainer or (share and served > engine):
        tight = "vLLM's copy does not fit" if share and served > engine else "the weights do not fit into one"
        return Finding("GPU memory", "problem" if count == 1 else "warning", f"{found}: {tight}", fix)
    if need > BUSY * trainer or (share and served > 0.9 * engine):
        return Finding("GPU memory", "warning", f"{found}: little is left for the steps", fix)
    return Finding("GPU memory", "ok", found)


def _trainer(run: Run, base: int) -> int:
    """Bytes of a trainer between two passes: the base; without an adapter also gradients and moments."""
    if run.config.adapter is not None:
        return base
    known = run.base.shape
    parameters = (
        known.parameters if isinstance(known, Shape) else base / weights.BYTES[run.config.model.dtype]
    )
    return round(FLOAT32 * parameters * (2 + 1 + 2))


def _weights(run: Run) -> int | None:
    """Bytes of the base in memory, from its shape or else from its bfloat16 files; None where unknown."""
    model = run.config.model
    if isinstance(run.base.shape, Shape):
        return base_bytes(run.base.shape, model.dtype, model.quantization)
    if run.base.stored is None:
        return None
    share = weights.NF4_BYTES if model.quantization == "nf4" else weights.BYTES[model.dtype]
    return round(run.base.stored / weights.BYTES["bfloat16"] * share)
