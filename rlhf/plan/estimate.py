"""A plan: memory of every phase, time, cost, and changes to a run that does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rlhf.plan.changes import Change, Remedy, best_strategy, fits, larger, remedy, single_changes
from rlhf.plan.defaults import chosen
from rlhf.plan.memory.loading import loading_host_bytes, loading_phase
from rlhf.plan.memory.phases import Engine, Phase, Tracer, engine_of, host_bytes, phases
from rlhf.plan.request import Assumptions, Request
from rlhf.plan.speed import Bill, bill


@dataclass(frozen=True)
class Plan:
    """Memory, time and cost of a request, and changes where it does not fit."""

    request: Request
    assumed: Assumptions
    phases: list[Phase]
    bill: Bill | None
    """Of the request or, where it does not fit, of the changed one that does."""
    changes: list[Change]
    """Each alone; empty where the request fits."""
    remedy: Remedy | None
    """Changes that together fit on these GPUs."""
    larger: Remedy | None
    """Where no change fits on these GPUs: changes on more of them."""
    engine: Engine | None = None
    """The rollout engine of the request."""
    host_bytes: int = 0
    """Host memory of one machine for offloaded shards."""
    loading_bytes: int = 0
    """Peak host memory of one machine while the base is loaded."""
    loading: Phase | None = None
    """Memory of one GPU meanwhile."""
    chosen: Mapping[str, Any] = field(default_factory=dict)
    """Settings for keys that the config leaves unset."""

    @property
    def fits(self) -> bool:
        """Whether every phase of the request fits, loading included."""
        return fits(self.phases) and (self.loading is None or self.loading.fits)


def make_plan(request: Request, tracer: Tracer, assumed: Assumptions, *, choose: bool) -> Plan:
    """Plan a request; with `choose`, first replace its strategy by the first one that fits."""
    if choose:
        request = best_strategy(request, tracer)
    request, taken = chosen(request, tracer)
    planned, engine, host = phases(request, tracer), engine_of(request, tracer), host_bytes(request, tracer)
    loading, on_gpu = loading_host_bytes(request, tracer), loading_phase(request, tracer)
    if fits(planned):
        return Plan(
            request,
            assumed,
            planned,
            bill(request, tracer, assumed),
            [],
            None,
            None,
            engine,
            host,
            loading,
            on_gpu,
            taken,
        )
    on_these = remedy(request, tracer)
    on_more = larger(request, tracer) if on_these is None else None
    runs = on_these or on_more
    priced = bill(runs.request, tracer, assumed) if runs else None
    changes = single_changes(request, tracer)
    return Plan(
        request, assumed, planned, priced, changes, on_these, on_more, engine, host, loading, on_gpu, taken
    )
