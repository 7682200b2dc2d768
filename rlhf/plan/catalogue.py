"""Plans of the configs in `configs/` on usual machines, as `configs/plans.md`.

python -m rlhf.plan.catalogue            # writes the file anew; a test compares
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rlhf.core.runs import atomic_write_text
from rlhf.plan.changes import best_strategy, fits, larger, way_out
from rlhf.plan.configs import load_either
from rlhf.plan.gpus import GIB, PRICES_OF, parse_gpus
from rlhf.plan.phases import Phase, Tracer, phases
from rlhf.plan.report import gib
from rlhf.plan.request import Assumptions, Request, row_of
from rlhf.plan.shapes import load_shape
from rlhf.plan.speed import assumptions, bill

CONFIGS = ("reward/llama-3.1-8b", "reward/nemotron-70b", "policy/llama-3.1-8b", "policy/nemotron-70b")
MACHINES = ("1xRTX4090", "1xL40S", "2xRTX4090", "1xH100", "8xH100", "4x8xH100")
FILE = Path("configs/plans.md")

HEAD = f"""# Plans

What `rlhf plan` says of the configs here on usual machines; written by `python -m rlhf.plan.catalogue`, held by a test. Traced without
weights, not run on a GPU by us. Memory is that of one card in its highest phase, in GiB. Hours and dollars are estimates at
{Assumptions().utilisation:.0%} of the data sheet's peak and the prices of `rlhf/plan/gpus.py` ({PRICES_OF}).
"""


def lines(root: Path) -> Iterator[str]:
    """The page, line by line."""
    yield HEAD
    tracers: dict[str, Tracer] = {}
    for name in CONFIGS:
        file = root / "configs" / f"{name}.yaml"
        config = load_either(file)
        tracer = tracers.setdefault(config.model.base, Tracer(load_shape(config.model.base)))
        asked = Request(config, parse_gpus(MACHINES[0]), "one")
        yield f"## configs/{name}.yaml\n"
        yield f"Rows of at most {row_of(config).tokens:,} tokens; {assumptions(asked, Assumptions())['lengths']}.\n"
        yield "| machine | as it stands | highest | changed so that it fits | highest | hours | $ |"
        yield "| --- | --- | ---: | --- | ---: | ---: | ---: |"
        for machine in MACHINES:
            yield _row(replace(asked, cluster=parse_gpus(machine)), tracer)
        yield ""


def _row(request: Request, tracer: Tracer) -> str:
    request = best_strategy(request, tracer)
    found = phases(request, tracer)
    cells = [str(request.cluster), f"fits, {request.strategy}" if fits(found) else "no", _highest(found)]
    runs: Request | None = request
    if fits(found):
        cells += ["", ""]
    else:
        out = way_out(request, tracer)
        beyond = larger(request, tracer) if out is None else None
        either = out or beyond
        runs = either.request if either else None
        if either is None:
            cells += ["nothing that was tried", ""]
        else:
            words = [f"`{change}`" for change in either.changes]
            if out is None:
                words.insert(0, f"nothing on this machine; `--gpus {either.request.cluster}`")
            cells += [", ".join(words), _highest(either.phases)]
    costs = bill(runs, tracer, Assumptions()) if runs else None
    if costs is None or costs.hours is None or costs.dollars is None:
        cells += ["", ""]
    else:
        cells += [f"{costs.hours:,.1f}", f"{costs.dollars:,.0f}"]
    return f"| {' | '.join(cells)} |"


def _highest(found: list[Phase]) -> str:
    worst = max(found, key=lambda phase: (bool(phase.trouble), phase.total - phase.card))
    why = " (vLLM has no room for a sequence)" if worst.trouble else ""
    return f"{gib(worst.total)} of {worst.card / GIB:.1f}, {worst.name}{why}"


if __name__ == "__main__":
    atomic_write_text(FILE, "\n".join(lines(Path())))
    print(f"Wrote {FILE}.")
