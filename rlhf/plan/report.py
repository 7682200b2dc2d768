"""A plan, whole: phases, changes, time and price; as tables, as JSON, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rlhf.config.policy import PolicyConfig
from rlhf.config.rewards import Source
from rlhf.plan.changes import Change, WayOut, best_strategy, fits, larger, single_changes, way_out
from rlhf.plan.defaults import chosen
from rlhf.plan.gpus import GIB, PRICES_OF
from rlhf.plan.phases import (
    KINDS,
    Engine,
    Phase,
    Tracer,
    engine_of,
    host_bytes,
    loading_host_bytes,
    phases,
    tightest,
)
from rlhf.plan.request import Assumptions, Request, longest_tree, row_of
from rlhf.plan.sharding import CONTEXT, FRAGMENTS, NCCL
from rlhf.plan.speed import Bill, assumptions, between, bill

STRATEGY_NAMES = {
    "one": "one card",
    "ddp": "DDP: everything on each card",
    "fsdp": "FSDP2: weights, gradients and moments shared out",
    "fsdp-offload": "FSDP2 with the shards in the machine's memory",
}


@dataclass(frozen=True)
class Plan:
    """What is known before anything is rented."""

    request: Request
    told: Assumptions
    phases: list[Phase]
    bill: Bill | None
    """Of the run as asked or, where that does not fit, of the one that does."""
    changes: list[Change]
    """Where it does not fit."""
    way_out: WayOut | None
    beyond: WayOut | None
    """Where no change fits on these cards: more of them."""
    engine: Engine | None = None
    """vLLM as asked for."""
    host_bytes: int = 0
    """What offloading keeps in a machine's own memory."""
    loading_bytes: int = 0
    """What a machine's own memory holds at most while the base is loaded."""
    chosen: Mapping[str, Any] = field(default_factory=dict)
    """Settings that a run takes on these GPUs, since its config does not say."""

    @property
    def fits(self) -> bool:
        """Whether every phase runs as asked."""
        return fits(self.phases)


def make_plan(request: Request, tracer: Tracer, told: Assumptions, *, choose: bool) -> Plan:
    """Plan a request; with `choose`, find the way the cards share the work first."""
    if choose:
        request = best_strategy(request, tracer)
    request, taken = chosen(request, tracer)
    found, engine, host = phases(request, tracer), engine_of(request, tracer), host_bytes(request, tracer)
    loading = loading_host_bytes(request, tracer)
    if fits(found):
        return Plan(
            request, told, found, bill(request, tracer, told), [], None, None, engine, host, loading, taken
        )
    out = way_out(request, tracer)
    beyond = larger(request, tracer) if out is None else None
    runs = out or beyond
    priced = bill(runs.request, tracer, told) if runs else None
    changes = single_changes(request, tracer)
    return Plan(request, told, found, priced, changes, out, beyond, engine, host, loading, taken)


def gib(size: float) -> str:
    """Bytes as GiB with one decimal; nothing as a dot."""
    return f"{size / GIB:.1f}" if size >= 0.05 * GIB else "·" if size < 1e6 else "0.0"


def show(plan: Plan, console: Console) -> None:
    """Print a plan."""
    request = plan.request
    console.print(_title(plan), style="bold")
    if plan.chosen:
        words = " ".join(f"{key}={value}" for key, value in plan.chosen.items())
        console.print(f"Taken on these GPUs, since the config does not say: {words}")
    console.print(f"Highest memory of one card, in GiB{_rows_note(request)}:")
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
    elif request.cluster.card.tflops is None:
        console.print(
            "Speed: not known for a plain size; name a card, such as 1xL40S-48GB, for hours and cost."
        )
    for line in notes(plan):
        console.print(line, style="dim")


def _title(plan: Plan) -> str:
    request, engine = plan.request, plan.engine
    title = f"{request.config.model.base} on {request.cluster}, {STRATEGY_NAMES[request.strategy]}"
    if request.servers is None or engine is None:
        return title
    each = "one card" if engine.parallel == 1 else f"{engine.parallel} cards (--tensor-parallel-size)"
    return f"{title}; rollouts on {request.servers}, a vLLM server on {each}"


def _rows_note(request: Request) -> str:
    row, longest = row_of(request.config), longest_tree(request.config)
    why = (
        "tokens_per_batch"
        if request.config.tokens_per_batch >= longest
        else "the longest item, which is never cut"
    )
    return f"; rows of {row.tokens:,} tokens ({why})"


def memory_table(found: Sequence[Phase]) -> Table:
    """Kinds down, phases across."""
    table = Table()
    table.add_column("")
    for phase in found:
        table.add_column(phase.name, justify="right")
    for kind in KINDS:
        sizes = [phase.kinds.get(kind, 0) for phase in found]
        if any(sizes):
            table.add_row(kind, *map(gib, sizes))
    table.add_section()
    table.add_row("sum", *(gib(phase.total) for phase in found), style="bold")
    table.add_row("card", *(gib(phase.card) for phase in found))
    table.add_row("fits", *("yes" if phase.fits else "NO" for phase in found), style="bold")
    return table


def _verdict(plan: Plan) -> str:
    worst = tightest(plan.request, plan.phases)
    room = abs(worst.card - worst.total) / GIB
    if plan.fits:
        return f"It fits, with {room:.1f} GiB to spare in its tightest phase ({worst.name})."
    if worst.total <= worst.card:
        return "It does not run as it stands."
    return f"It does not fit: {worst.name} is {room:.1f} GiB too large."


def _change_table(changes: Sequence[Change]) -> Table:
    table = Table(title="Changes, each alone", title_justify="left", title_style="")
    for name in ("what to type", "saves GiB", "then", "fits", "its price"):
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
    if plan.way_out is not None:
        worst = tightest(plan.way_out.request, plan.way_out.phases)
        return [f"Fits together: {' '.join(plan.way_out.changes)} ({worst.name}: {gib(worst.total)} GiB)."]
    if plan.beyond is not None:
        extra = f" with {' '.join(plan.beyond.changes)}" if plan.beyond.changes else ""
        servers = plan.beyond.request.servers
        there = " and" if servers else ""
        return [
            f"No change fits on {plan.request.cluster}. What does: --gpus {plan.beyond.request.cluster}{there}{extra}."
        ]
    return [f"No change fits, and no number of {plan.request.cluster.card.name} that was tried."]


def _speed_table(found: Bill, *, changed: bool) -> Table:
    title = f"Time of {found.per}{', changed so that it fits' if changed else ''}"
    table = Table(title=title, title_justify="left", title_style="")
    for name in ("", "tokens/s at best", "hours"):
        table.add_column(name, justify="left" if not name else "right")
    for speed in found.phases:
        table.add_row(speed.name, f"{speed.tokens_per_second:,.0f}", between(speed.hours, speed.most_hours))
    return table


def _bill_line(plan: Plan) -> str:
    found = plan.bill
    assert found is not None
    updates = (
        f"{found.updates:,} updates" if found.updates else "1,000 updates (how many there are, the data says)"
    )
    price = plan.request.cluster.card.price
    cost = (
        ""
        if found.dollars is None or found.most_dollars is None
        else f", ${between(found.dollars, found.most_dollars, ',.0f')} at ${price:.2f} a card and hour ({PRICES_OF}; --price)"
    )
    engine = ""
    if found.at_once is not None:
        name = "Rollouts" if plan.engine is not None and plan.engine.paged else "vLLM"
        engine = f" {name}: {found.at_once} full-length answers at once on {found.parallel} card(s)."
    assert found.hours is not None
    assert found.most_hours is not None
    return f"{updates}: {between(found.hours, found.most_hours)} hours{cost}.{engine}"


def notes(plan: Plan) -> list[str]:
    """What was assumed, and what no trace sees."""
    assumed = assumptions(plan.request, plan.told)
    lines = (
        [f"Assumed: {assumed['lengths']}; {assumed['utilisation']}; {assumed['links']}."] if plan.bill else []
    )
    own = [source.place for source in _sources(plan.request) if source.kind == "classifier"]
    if own:
        lines.append(
            f"Not counted: the weights of {', '.join(own)}, which each process loads beside the base."
        )
    if plan.request.strategy.startswith("fsdp") and getattr(plan.request.config, "expo", None):
        lines.append(
            "A run with `expo` is refused under FSDP2: leave it out, and run `rlhf extrapolate` afterwards."
        )
    if isinstance(plan.request.config, PolicyConfig) and plan.request.config.rollouts.sleep and plan.engine:
        asleep = plan.engine.memory.weights * plan.request.cluster.per_node
        lines.append(f"Between rollouts vLLM's weights wait in each machine's own memory: {gib(asleep)} GiB.")
    if plan.loading_bytes:
        lines.append(f"Loading takes up to {gib(plan.loading_bytes)} GiB of each machine's own memory.")
    if plan.host_bytes:
        lines.append(f"Offloaded to the memory of each machine: {gib(plan.host_bytes)} GiB.")
    return [
        *lines,
        "Traced from the real update without weights; CPU runs agree within 5 % (no GPU was at hand).",
        f"Allowance, not traced: {gib(CONTEXT)} GiB CUDA context, {gib(NCCL)} GiB NCCL with several cards, "
        f"{FRAGMENTS:.0%} of activations for fragments.",
    ]


def _sources(request: Request) -> list[Source]:
    """Whoever rewards answers, the held-out one too."""
    config = request.config
    if not isinstance(config, PolicyConfig):
        return []
    return [*config.reward, *([config.held_out_reward] if config.held_out_reward else [])]


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain data, in bytes."""
    request = plan.request
    out = plan.way_out or plan.beyond
    return {
        "model": request.config.model.base,
        "gpus": str(request.cluster),
        "rollout_gpus": str(request.servers) if request.servers else None,
        "rollout_parallel": plan.engine.parallel if plan.engine else None,
        "parallel": request.strategy,
        "host_bytes": plan.host_bytes,
        "loading_bytes": plan.loading_bytes,
        "row_tokens": row_of(request.config).tokens,
        "chosen": dict(plan.chosen),
        "fits": plan.fits,
        "phases": [_phase_json(phase) for phase in plan.phases],
        "changes": [vars(change) for change in plan.changes],
        "fits_with": None
        if out is None
        else {
            "gpus": str(out.request.cluster),
            "changes": out.changes,
            "phases": [_phase_json(p) for p in out.phases],
        },
        "bill": None
        if plan.bill is None
        else {**vars(plan.bill), "phases": [vars(s) for s in plan.bill.phases]},
        "assumptions": dict(assumptions(request, plan.told)),
    }


def _phase_json(phase: Phase) -> dict[str, Any]:
    return {**vars(phase), "kinds": dict(phase.kinds), "total": phase.total, "fits": phase.fits}


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
    """Stacked bars, one a phase, against the card's memory; PNG or SVG by the file's name."""
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
    cards = {phase.card / GIB for phase in plan.phases}
    for card in cards:
        axes.axvline(card, color="#c1121f", linewidth=1.5)
        axes.annotate(
            f"card {card:.1f}",
            (card, 1.0),
            xycoords=("data", "axes fraction"),
            color="#c1121f",
            ha="center",
            va="bottom",
            fontsize=9,
        )
    for row, total in enumerate(left):
        axes.text(total, row, f" {total:.1f}", va="center", fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1 * max(*left, *cards))
    axes.set_xlabel("GiB on one card")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(
        f"{plan.request.config.model.base} on {plan.request.cluster}", loc="left", fontsize=11, pad=18
    )
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.savefig(file, dpi=150)
    plt.close(figure)
