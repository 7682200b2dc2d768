"""The plan of a run on this machine's GPUs: settings for unset keys, and an explanation of memory errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from rlhf.config.policy import PolicyConfig
from rlhf.config.reward import RewardConfig
from rlhf.core.errors import RlhfError
from rlhf.distributed import processes
from rlhf.models.placement import require_usable_gpus
from rlhf.plan.changes import best_strategy, single_changes
from rlhf.plan.defaults import chosen
from rlhf.plan.gpus import GIB, Cluster, Gpu
from rlhf.plan.memory.loading import HostMemory, host_memory, loading_phase
from rlhf.plan.memory.phases import Phase, Tracer, phases
from rlhf.plan.memory.shapes import shape_of
from rlhf.plan.request import Request, as_packed, changed
from rlhf.runs.gpu_memory import GpuMemoryError, phase

CANNOT_PLAN = (RlhfError, RuntimeError, ValueError, TypeError, AttributeError, KeyError, NotImplementedError)
"""Raised by tracing for a base that is not on this machine, or whose code needs data: no reason to stop a
run."""

PLANNED_AS = {"update": ("update", "critic", "log-probabilities"), "head start": ("validation",)}
"""Phase of a run: its phases in the plan, where the names differ."""

Config = TypeVar("Config", RewardConfig, PolicyConfig)


def this_cluster() -> Cluster | None:
    """The GPUs of this run's processes, one each, of unknown speed; None without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    device = torch.cuda.get_device_properties(torch.cuda.current_device())
    count = processes.world_size()
    per_node = min(count, int(os.environ.get("LOCAL_WORLD_SIZE", count)))
    return Cluster(Gpu(device.name, device.total_memory), per_node, max(1, count // per_node))


def this_strategy() -> str:
    """The launcher's strategy, by its name in `rlhf.plan.memory.sharding.STRATEGIES`."""
    from rlhf.distributed import sharding

    if sharding.is_requested():
        offloads = os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true"
        return "fsdp-offload" if offloads else "fsdp"
    return "one" if processes.world_size() == 1 else "ddp"


def fit_to_machine(config: Config) -> Config:
    """The config with unset keys filled in for this machine's GPUs; prints them. Unchanged without a GPU.

    Prints a warning where the plan expects that the run does not fit.

    Raises:
        RunError: there are GPUs, and torch can use none.
    """
    require_usable_gpus()
    cluster = this_cluster()
    if cluster is None or config.adapter is None:
        return config
    try:
        request, tracer = _request(config, cluster)
        fitted, taken = chosen(request, tracer)
        too_large = _too_large(fitted, tracer)
    except CANNOT_PLAN as error:
        if processes.is_main():
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            print(
                f"Settings are not fitted to {cluster}: the plan cannot trace this base ({why}).", flush=True
            )
        return config
    if taken and processes.is_main():
        words = " ".join(f"{key}={value}" for key, value in taken.items())
        print(f"Set for {cluster} by the plan, as the config leaves them unset: {words}", flush=True)
    if too_large and processes.is_main():
        print(too_large, file=sys.stderr, flush=True)
    return changed(fitted.config, "model.packing", config.model.packing)  # type: ignore[no-any-return]


def _too_large(request: Request, tracer: Tracer) -> str:
    """A warning with the tightest phase and the first change; empty where every phase fits."""
    planned = [loading_phase(request, tracer), *phases(request, tracer)]
    worst = max(planned, key=lambda phase: (not phase.fits, phase.total - phase.capacity))
    if worst.fits:
        return ""
    changes = single_changes(request, tracer)
    first = changes[0].what if changes else "a larger GPU"
    return (
        f"Warning: the plan expects {worst.name} to take {worst.total / GIB:.1f} of "
        f"{worst.capacity / GIB:.1f} GiB on {request.cluster}. First change: {first}."
    )


def plan_on(config: RewardConfig | PolicyConfig, cluster: Cluster) -> tuple[list[Phase], HostMemory]:
    """The phases of a run on these GPUs, loading first, and the machine's memory that it needs.

    With the settings that it would set, and the first strategy that fits.
    """
    request, tracer = _request(config, cluster)
    request = best_strategy(replace(request, strategy="one" if cluster.count == 1 else "ddp"), tracer)
    request, _ = chosen(request, tracer)
    return [loading_phase(request, tracer), *phases(request, tracer)], host_memory(request, tracer)


@contextmanager
def explained(config: RewardConfig | PolicyConfig) -> Iterator[None]:
    """Context in which a GpuMemoryError also says what the plan expected, and the first change to make.

    Raises:
        GpuMemoryError: the GPU's memory ran out.
    """
    try:
        with phase("run"):
            yield
    except GpuMemoryError as error:
        cluster = this_cluster()
        if cluster is None or config.adapter is None:
            raise
        try:
            raise _with_plan(error, config, cluster) from error
        except GpuMemoryError:
            raise
        except CANNOT_PLAN:
            raise error from None


def _with_plan(
    error: GpuMemoryError, config: RewardConfig | PolicyConfig, cluster: Cluster
) -> GpuMemoryError:
    request, tracer = _request(config, cluster)
    expected = _expected(error.phase, request, tracer)
    verdict = "it should have fitted: another program may hold memory" if expected.fits else "too large"
    planned = (
        f"The plan expected {expected.total / GIB:.1f} of {expected.capacity / GIB:.1f} GiB "
        f"({expected.name}): {verdict}."
    )
    changes = single_changes(request, tracer)
    fix = changes[0].what if changes else "a larger GPU"
    return GpuMemoryError(error.phase, error.cause, planned=planned, fix=fix)


def _expected(name: str, request: Request, tracer: Tracer) -> Phase:
    """The phase of the plan that a phase of the run is; the tightest of several, or of all."""
    if name == "loading":
        return loading_phase(request, tracer)
    planned = phases(request, tracer)
    known = [phase for phase in planned if phase.name in PLANNED_AS.get(name, (name,))]
    return max(known or planned, key=lambda phase: phase.total)


def _request(config: RewardConfig | PolicyConfig, cluster: Cluster) -> tuple[Request, Tracer]:
    tracer = Tracer(shape_of(config))
    config, _ = as_packed(config, tracer.shape)
    servers = None
    if isinstance(config, PolicyConfig) and config.rollouts.engine == "servers":
        servers = Cluster(cluster.gpu, 1, len(config.rollouts.servers))
    return Request(config, cluster, this_strategy(), servers), tracer
