"""The report of a plan: phases, changes, time and price, as tables, as JSON, as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rlhf.config.policy import PolicyConfig
from rlhf.config.rewards import RewardSourceConfig
from rlhf.plan.changes import LARGEST, Change
from rlhf.plan.estimate import Plan
from rlhf.plan.gpus import GIB, PRICES_OF
from rlhf.plan.memory.engine import GRAPHS, PAGED_SHARE
from rlhf.plan.memory.phases import (
    KINDS,
    Phase,
    tightest,
)
from rlhf.plan.memory.sharding import CONTEXT, FRAGMENTS, NCCL
from rlhf.plan.request import Request, longest_tree, row_of
from rlhf.plan.speed import ROLLOUTS_ASSUMED, Bill, assumptions, between

STRATEGY_NAMES = {
    "one": "one GPU",
    "ddp": "DDP: everything on each GPU",
    "fsdp": "FSDP2: weights, gradients and moments sharded",
    "fsdp-offload": "FSDP2 with shards offloaded to host memory",
}


def gib(size: float) -> str:
    """Bytes as GiB with one decimal; a dot for 0."""
    return f"{size / GIB:.1f}" if size >= 0.05 * GIB else "·" if size < 1e6 else "0.0"


def show(plan: Plan, console: Console) -> None:
    """Print a plan."""
    request = plan.request
    console.print(_title(plan), style="bold")
    if plan.chosen:
        words = " ".join(f"{key}={value}" for key, value in plan.chosen.items())
        console.print(f"Set for these GPUs, as the config leaves them unset: {words}")
    console.print(f"Peak memory of one GPU, in GiB{_rows_note(request)}:")
    console.print(memory_table(plan.phases))
    for phase in plan.phases:
        if phase.trouble:
            console.print(f"{phase.name}: {phase.trouble}.", style="red")
    console.print(_verdict(plan), style="green" if plan.fits else "bold red")
    if plan.changes:
        console.print(_change_table(plan.changes))
    for line in _ways(plan):
        console.print(line)
    if plan.bill is not None:
        console.print(_speed_table(plan.bill, changed=not plan.fits))
        console.print(_bill_line(plan))
    elif request.cluster.gpu.tflops is None:
        console.print(
            "Speed: not known for a plain size; name a GPU, such as 1xL40S-48GB, for hours and cost."
        )
    for line in notes(plan):
        console.print(line, style="dim")


def _title(plan: Plan) -> str:
    request, engine = plan.request, plan.engine
    title = f"{request.config.model.base} on {request.cluster}, {STRATEGY_NAMES[request.strategy]}"
    if request.servers is None or engine is None:
        return title
    each = "one GPU" if engine.parallel == 1 else f"{engine.parallel} GPUs (--tensor-parallel-size)"
    return f"{title}; rollouts on {request.servers}, a vLLM server on {each}"


def _rows_note(request: Request) -> str:
    row, longest = row_of(request.config), longest_tree(request.config)
    why = (
        "tokens_per_batch"
        if request.config.tokens_per_batch >= longest
        else "the longest item, which is never cut"
    )
    if not request.config.model.packing:
        return f"; {row.rows:,} rows of {row.tokens // row.rows:,} tokens, one sequence each ({why})"
    return f"; rows of {row.tokens:,} tokens ({why})"


def memory_table(planned: Sequence[Phase]) -> Table:
    """Rows are kinds of memory, columns phases."""
    table = Table()
    table.add_column("")
    for phase in planned:
        table.add_column(phase.name, justify="right")
    for kind in KINDS:
        sizes = [phase.kinds.get(kind, 0) for phase in planned]
        if any(sizes):
            table.add_row(kind, *map(gib, sizes))
    table.add_section()
    table.add_row("sum", *(gib(phase.total) for phase in planned), style="bold")
    table.add_row("GPU", *(gib(phase.capacity) for phase in planned))
    table.add_row("fits", *("yes" if phase.fits else "NO" for phase in planned), style="bold")
    return table


def _verdict(plan: Plan) -> str:
    """The tightest phase of a GPU and, if the machine's memory does not suffice, what of it is missing."""
    worst = tightest(plan.request, plan.phases)
    if worst.fits and plan.loading is not None and not plan.loading.fits:
        worst = plan.loading
    room = abs(worst.capacity - worst.total) / GIB
    if not worst.fits:
        too_large = f"It does not fit: {worst.name} is {room:.1f} GiB too large."
        return too_large if worst.total > worst.capacity else "It does not run as it stands."
    host = plan.host
    if host is not None and host.available is not None and not host.fits:
        what = "loading the base" if host.loading >= host.training else "training"
        less = LESS_HOST_MEMORY[plan.request.strategy]
        return (
            f"It does not fit: {what} needs {gib(host.need)} GiB of host memory on each machine, which has "
            f"{gib(host.available)}. {less}"
        )
    return f"It fits, with {room:.1f} GiB to spare in its tightest phase ({worst.name})."


LESS_HOST_MEMORY = {
    "one": "Less is needed with model.quantization=nf4, which loads straight to the GPU.",
    "ddp": "Less is needed with --parallel fsdp, where one process reads the base, or with fewer GPUs.",
    "fsdp": "Less is needed with fewer GPUs on each machine.",
    "fsdp-offload": "Less is needed with --parallel fsdp, or with fewer GPUs on each machine.",
}
"""Strategy: the first thing to change where a machine's memory does not suffice."""


def _change_table(changes: Sequence[Change]) -> Table:
    table = Table(title="Changes, each alone", title_justify="left", title_style="")
    for name in ("change", "saves GiB", "then", "fits", "cost"):
        table.add_column(
            name, justify="right" if name in ("saves GiB", "then") else "left", overflow="fold", min_width=4
        )
    for change in changes:
        yes = "yes" if change.fits else "no"
        table.add_row(change.what, gib(change.saved), gib(change.highest), yes, change.price)
    return table


def _ways(plan: Plan) -> list[str]:
    if plan.fits:
        return []
    if plan.remedy is not None:
        worst = tightest(plan.remedy.request, plan.remedy.phases)
        return [f"Fits together: {' '.join(plan.remedy.changes)} ({worst.name}: {gib(worst.total)} GiB)."]
    if plan.larger is not None:
        extra = f" with {' '.join(plan.larger.changes)}" if plan.larger.changes else ""
        servers = plan.larger.request.servers
        there = " and" if servers else ""
        wider = plan.larger.request.cluster
        return [f"No change fits on {plan.request.cluster}. What does: --gpus {wider}{there}{extra}."]
    return [f"No change fits, on up to {LARGEST} {plan.request.cluster.gpu.name} either."]


def _speed_table(total: Bill, *, changed: bool) -> Table:
    title = f"Time of {total.per}{', changed so that it fits' if changed else ''}"
    table = Table(title=title, title_justify="left", title_style="")
    for name in ("", "tokens/s at best", "hours"):
        table.add_column(name, justify="left" if not name else "right")
    for speed in total.phases:
        table.add_row(speed.name, f"{speed.tokens_per_second:,.0f}", between(speed.hours, speed.most_hours))
    return table


def _bill_line(plan: Plan) -> str:
    total = plan.bill
    assert total is not None
    updates = (
        f"{total.updates:,} updates" if total.updates else "1,000 updates (their number depends on the data)"
    )
    price = plan.request.cluster.gpu.price
    cost = (
        ""
        if total.dollars is None or total.most_dollars is None
        else f", ${between(total.dollars, total.most_dollars, ',.0f')} at ${price:.2f} per GPU and hour "
        f"({PRICES_OF}; --price)"
    )
    engine = ""
    if total.at_once is not None:
        name = "vLLM" if total.sampler == "vllm" else "Rollouts"
        engine = f" {name}: {total.at_once} full-length answers at once on {total.parallel} GPU(s)."
    assert total.hours is not None
    assert total.most_hours is not None
    return f"{updates}: {between(total.hours, total.most_hours)} hours{cost}.{engine}"


def notes(plan: Plan) -> list[str]:
    """Assumptions, and memory that a trace does not see."""
    assumed = assumptions(plan.request, plan.assumed)
    lines = [f"Assumed: {'; '.join(assumed.values())}."] if plan.bill else []
    classifiers = [source.place for source in _sources(plan.request) if source.kind == "classifier"]
    if classifiers:
        lines.append(
            f"Not counted: the weights of {', '.join(classifiers)}, which each process loads beside the base."
        )
    if plan.request.strategy.startswith("fsdp") and getattr(plan.request.config, "expo", None):
        lines.append(
            "`expo` is not supported under FSDP2: leave it out, and run `rlhf extrapolate` afterwards."
        )
    if plan.loading is not None:
        lines.append(f"Loading takes up to {gib(plan.loading.total)} GiB of each GPU.")
    if plan.host is not None:
        host = plan.host
        known = (
            f"of {gib(host.available)} GiB"
            if host.available is not None
            else "(--host-memory GIB compares it, rlhf doctor with a machine)"
        )
        lines.append(
            f"Host memory of each machine: {gib(host.loading)} GiB while loading, {gib(host.training)} GiB "
            f"for offloaded shards and a sleeping engine, {known}; libraries not counted."
        )
    return [
        *lines,
        "Traced from the real update without weights; CPU runs agree within 5 %. Not yet compared on a GPU.",
        *_estimates(plan),
    ]


def _estimates(plan: Plan) -> list[str]:
    """The figures of the plan that are neither traced nor measured."""
    estimates = [
        f"{gib(CONTEXT)} GiB CUDA context",
        f"{gib(NCCL)} GiB NCCL on several GPUs",
        f"{FRAGMENTS:.0%} of activations for fragmentation",
    ]
    if plan.engine is not None and plan.engine.paged:
        estimates.append(f"a cache in {PAGED_SHARE:.0%} of the free memory, as transformers sizes it")
    elif plan.engine is not None:
        estimates += [
            f"{gib(GRAPHS)} GiB CUDA graphs of vLLM",
            f"{gib(plan.engine.memory.working - GRAPHS)} GiB activations of vLLM, which profiles them",
        ]
    sampler = plan.bill.sampler if plan.bill is not None else None
    if sampler is not None and sampler in ROLLOUTS_ASSUMED:
        estimates.append(ROLLOUTS_ASSUMED[sampler])
    return [f"Estimates, neither traced nor measured: {'; '.join(estimates)}."]


def _sources(request: Request) -> list[RewardSourceConfig]:
    """The sources of rewards, the held-out one included."""
    config = request.config
    if not isinstance(config, PolicyConfig):
        return []
    return [*config.reward, *([config.held_out_reward] if config.held_out_reward else [])]


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON data; sizes in bytes."""
    request = plan.request
    remedy = plan.remedy or plan.larger
    return {
        "model": request.config.model.base,
        "gpus": str(request.cluster),
        "rollout_gpus": str(request.servers) if request.servers else None,
        "rollout_parallel": plan.engine.parallel if plan.engine else None,
        "parallel": request.strategy,
        "host": None if plan.host is None else {**vars(plan.host), "fits": plan.host.fits},
        "loading": None if plan.loading is None else _phase_json(plan.loading),
        "row_tokens": row_of(request.config).tokens,
        "chosen": dict(plan.chosen),
        "fits": plan.fits,
        "phases": [_phase_json(phase) for phase in plan.phases],
        "changes": [vars(change) for change in plan.changes],
        "fits_with": None
        if remedy is None
        else {
            "gpus": str(remedy.request.cluster),
            "changes": remedy.changes,
            "phases": [_phase_json(p) for p in remedy.phases],
        },
        "bill": None
        if plan.bill is None
        else {**vars(plan.bill), "phases": [vars(s) for s in plan.bill.phases]},
        "assumptions": dict(assumptions(request, plan.assumed)),
    }


def _phase_json(phase: Phase) -> dict[str, Any]:
    return {
        "name": phase.name,
        "kinds": dict(phase.kinds),
        "card": phase.capacity,
        "trouble": phase.trouble,
        "total": phase.total,
        "fits": phase.fits,
    }


COLOURS = (
    "#33658a",
    "#86bbd8",
    "#758e4f",
    "#f6ae2d",
    "#f26419",
    "#9b5de5",
    "#55566a",
    "#a4a5b5",
    "#c08552",
    "#d9d9d9",
)


def draw(plan: Plan, file: Path) -> None:
    """Draw a stacked bar for each phase against the GPU's memory; PNG or SVG by the file's suffix."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 1.7 + 0.55 * len(plan.phases)), layout="constrained")
    names = [phase.name for phase in plan.phases]
    left = [0.0] * len(names)
    for kind, colour in zip(KINDS, COLOURS, strict=True):
        sizes = [phase.kinds.get(kind, 0) / GIB for phase in plan.phases]
        if max(sizes) > 0.01:
            axes.barh(names, sizes, left=left, label=kind, color=colour, height=0.62)
        left = [a + b for a, b in zip(left, sizes, strict=True)]
    capacities = {phase.capacity / GIB for phase in plan.phases}
    for capacity in capacities:
        axes.axvline(capacity, color="#c1121f", linewidth=1.5)
        axes.annotate(
            f"GPU {capacity:.1f}",
            (capacity, 1.0),
            xycoords=("data", "axes fraction"),
            color="#c1121f",
            ha="center",
            va="bottom",
            fontsize=9,
        )
    for row, total in enumerate(left):
        axes.text(total, row, f" {total:.1f}", va="center", fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1 * max(*left, *capacities))
    axes.set_xlabel("GiB on one GPU")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(
        f"{plan.request.config.model.base} on {plan.request.cluster}", loc="left", fontsize=11, pad=18
    )
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.savefig(file, dpi=150)
    plt.close(figure)
