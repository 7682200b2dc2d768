"""A plan: memory of every phase, time, cost, and changes to a run that does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rlhf.plan.changes import Change, Remedy, best_strategy, fits, larger, remedy, single_changes
from rlhf.plan.defaults import chosen
from rlhf.plan.memory.loading import HostMemory, host_memory, loading_phase
from rlhf.plan.memory.phases import Engine, Phase, Tracer, engine_of, phases
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
    host: HostMemory | None = None
    """Memory of one machine beside its GPUs."""
    loading: Phase | None = None
    """Memory of one GPU while the base is loaded."""
    chosen: Mapping[str, Any] = field(default_factory=dict)
    """Settings for keys that the config leaves unset."""

    @property
    def fits(self) -> bool:
        """Whether every phase of the request fits, loading included, on GPUs and in the machine's memory."""
        loads = self.loading is None or self.loading.fits
        return fits(self.phases) and loads and (self.host is None or self.host.fits)


def make_plan(
    request: Request, tracer: Tracer, assumed: Assumptions, *, choose: bool, host: int | None = None
) -> Plan:
    """Plan a request.

    Args:
        choose: first replace its strategy by the first one that fits.
        host: bytes of memory of each machine, if known.
    """
    if choose:
        request = best_strategy(request, tracer)
    request, taken = chosen(request, tracer)
    plan = Plan(
        request,
        assumed,
        phases(request, tracer),
        None,
        [],
        None,
        None,
        engine_of(request, tracer),
        host_memory(request, tracer, host),
        loading_phase(request, tracer),
        taken,
    )
    if fits(plan.phases):
        return replace(plan, bill=bill(request, tracer, assumed))
    on_these = remedy(request, tracer)
    on_more = larger(request, tracer) if on_these is None else None
    runs = on_these or on_more
    return replace(
        plan,
        bill=bill(runs.request, tracer, assumed) if runs else None,
        changes=single_changes(request, tracer),
        remedy=on_these,
        larger=on_more,
    )
