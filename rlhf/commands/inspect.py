"""`rlhf inspect`: the data of a config, counted, measured, and shown as the model sees it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf.commands.options import Config, Overrides
from rlhf.config.either import load_either
from rlhf.config.reward import RewardConfig
from rlhf.data.agreement import signed

BAR = 40
"""Characters of the longest bar."""
FIRST, LAST = 60, 48
"""Tokens of the example that a terminal shows, at its beginning and its end."""


def command(
    config: Config,
    overrides: Overrides = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as one JSON object, the example in full.")
    ] = False,
) -> None:
    """Look at the data of a config before anything is trained.

    Shows each source with the rows read, kept and dropped, why and where; where there are raw annotations, how far people
    agree and whether our aggregate is the published one; what there is to learn; lengths in tokens; and one
    example as the model sees it, with the place where its score is read. For configs of train-reward and of
    align-policy. Loads the tokenizer, no weights.

    \b
    Example:
      rlhf inspect configs/reward/demo.yaml model.max_length=256
    """
    told = load_either(config, overrides or ())
    from rlhf.commands import inspection  # the tokenizer's library loads only when the command runs

    if isinstance(told, RewardConfig):
        found = inspection.inspect_reward(told)
    else:
        found = inspection.inspect_policy(told)
    if as_json:
        typer.echo(json.dumps({"config": str(config), **found}, indent=2, allow_nan=False))
    else:
        show(found, Console(highlight=False))


def show(found: Mapping[str, Any], console: Console) -> None:
    """Prints what `rlhf.commands.inspection` found."""
    show_sources(found, console)
    for name, result in found.get("agreement", {}).items():
        show_agreement(name, result, console)
    for name, result in found.get("rating_agreement", {}).items():
        show_rating_agreement(name, result, console)
    show_targets(found["targets"], console)
    if found["lengths"]:
        show_lengths(found, console)
    show_example(found, console)


def show_sources(found: Mapping[str, Any], console: Console) -> None:
    """A line a source, and under it a line a reason with its first places."""
    _section("Rows", console)
    for name, part in found["sources"].items():
        dropped = part["read"] - part["kept"]
        line = f"{name}: {part['read']:,} read, {part['kept']:,} kept, {dropped:,} dropped"
        console.print(line, markup=False, soft_wrap=True)
        _show_reasons(part["dropped"], console)
        _show_notes(part.get("notes", {}), console)
    _show_notes(found["notes"], console)
    if found["dropped_later"]:
        console.print("of these, when all were together:")
        _show_reasons(found["dropped_later"], console)


def _show_notes(notes: Mapping[str, int], console: Console) -> None:
    for note, count in notes.items():
        rows = f" ({count:,} rows)" if count > 1 else ""
        console.print(f"  note: {note}{rows}", markup=False, soft_wrap=True)


def _show_reasons(dropped: Mapping[str, Any], console: Console) -> None:
    for reason, entry in dropped.items():
        places = ", ".join(entry["examples"])
        more = ", ..." if entry["count"] > len(entry["examples"]) else ""
        console.print(f"  {entry['count']:>7,}  {reason}: {places}{more}", markup=False, soft_wrap=True)


def show_agreement(name: str, result: Mapping[str, Any], console: Console) -> None:
    """Kappa before and after, drops, and our aggregate beside the published one."""
    _section(f"Annotators of {name}", console)
    pairs, kept = result["pairs"], result["kept"]
    console.print(
        f"{pairs:,} pairs, {result['annotations']:,} valid annotations, {result['invalid']:,} that call neither "
        f"response valid. The run takes `annotations: {result['annotations_key']}`.",
        markup=False,
    )
    table = Table(box=None, pad_edge=False)
    for header in ("weighted kappa", "linear", "quadratic"):
        table.add_column(header, justify="left" if header == "weighted kappa" else "right")
    table.add_row("all annotations", *map(_figure, result["kappa_before"].values()))
    table.add_row("three most similar, of kept pairs", *map(_figure, result["kappa_after"].values()))
    console.print(table)
    dropped = ", ".join(f"{reason} {count / pairs:.1%}" for reason, count in result["dropped"].items())
    strengths = ", ".join(f"{signed(int(s))}: {count:,}" for s, count in result["strengths"].items())
    lines = [f"Our rules keep {kept:,} ({kept / pairs:.1%})" + (f"; dropped: {dropped}." if dropped else ".")]
    if kept:
        lines.append(f"Strengths: {strengths}. Response 2 is preferred in {result['second_preferred']:.1%}.")
    if result["compared_three"]:
        share = result["equal_three"] / result["compared_three"]
        lines.append(f"The three most similar annotations are the published ones in {share:.2%}.")
    console.print("\n".join(lines), markup=False)
    if result["compared"]:
        show_confusion(result, console)


def show_confusion(result: Mapping[str, Any], console: Console) -> None:
    """Published strength against our aggregate, and the first rows that differ."""
    share = result["equal"] / result["compared"]
    console.print(f"Our aggregate is the published strength in {share:.2%} of {result['compared']:,} pairs:")
    ours = {label for cells in result["confusion"].values() for label in cells}
    order = sorted(ours, key=lambda label: (not label.lstrip("+-").isdigit(), _number(label), label))
    table = Table(box=None, pad_edge=False)
    table.add_column("published \\ ours", justify="right")
    for label in order:
        table.add_column(label, justify="right")
    for published, cells in result["confusion"].items():
        counts = [cells.get(label, 0) for label in order]
        table.add_row(
            published,
            *(
                Text(
                    f"{count:,}" if count else "·",
                    style="" if label == published else "bold red" if count else "dim",
                )
                for label, count in zip(order, counts, strict=True)
            ),
        )
    console.print(table)
    for row in result["differing"]:
        console.print(
            f"  {row['place']}: {row['annotations']} is {row['published']} published, here {row['ours']}",
            markup=False,
            soft_wrap=True,
        )


def show_rating_agreement(name: str, result: Mapping[str, Any], console: Console) -> None:
    """Kappa of each attribute, before and after."""
    _section(f"Annotators of {name}", console)
    table = Table(box=None, pad_edge=False)
    table.add_column("weighted kappa")
    for header in ("all: linear", "quadratic", "three of kept: linear", "quadratic"):
        table.add_column(header, justify="right")
    for attribute, kappas in result.items():
        figures = [*kappas["before"].values(), *kappas["after"].values()]
        table.add_row(attribute, *map(_figure, figures))
    console.print(table)


def show_targets(targets: Mapping[str, Any], console: Console) -> None:
    """What there is to learn from, one figure a line."""
    _section("To learn from", console)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column()
    for name, value in targets.items():
        if value not in ({}, [], None):
            table.add_row(name, _told(value))
    console.print(table)


def show_lengths(found: Mapping[str, Any], console: Console) -> None:
    """Quantiles and a histogram, the part beyond the limit marked."""
    lengths, limit = found["lengths"], found["limit"]
    _section("Lengths in tokens", console)
    quantiles = ", ".join(f"{share} {value:,}" for share, value in lengths["quantiles"].items())
    console.print(f"{lengths['count']:,} in all, {lengths['total']:,} tokens. Quantiles: {quantiles}")
    most = max(bar["count"] for bar in lengths["histogram"])
    for bar in lengths["histogram"]:
        end = "and more" if bar["end"] is None else f"- {bar['end'] - 1:,}"
        filled = "█" * round(BAR * bar["count"] / most) or ("▏" if bar["count"] else "")
        beyond = bar["start"] > lengths["limit"]
        partly = lengths["longer"] and (bar["end"] is None or bar["end"] > lengths["limit"] + 1)
        console.print(
            Text.assemble(
                f"{bar['start']:>8,} {end:<10}",
                (f"{filled:<{BAR}}", "red" if beyond else "yellow" if partly else "green"),
                f" {bar['count']:,}",
            )
        )
    left_out = ", ".join(f"{count:,} {name}" for name, count in found["too_long"].items() if count)
    console.print(
        f"{lengths['longer']:,} are longer than {limit} = {lengths['limit']:,}"
        + (f"; left out for it: {left_out}." if left_out else ".")
    )


def show_example(found: Mapping[str, Any], console: Console) -> None:
    """Each token over its id; special tokens stand out, and so does the place the score is read at."""
    _section("One example, as the model sees it", console)
    for note in found["tokenizer"]["notes"]:
        console.print(note, markup=False)
    example = found["example"]
    if example is None:
        console.print("None is left.")
        return
    read_at = example.get("read_at")
    special = set(example["special"])
    count = len(example["ids"])
    cells = [
        (_visible(piece), str(one), place in special, place == read_at)
        for place, (piece, one) in enumerate(zip(example["pieces"], example["ids"], strict=True))
    ]
    if count > FIRST + LAST:
        hidden = count - FIRST - LAST
        show_tokens(cells[:FIRST], console)
        console.print(f"... {hidden:,} tokens more ...\n", style="dim")
        show_tokens(cells[-LAST:], console)
    else:
        show_tokens(cells, console)
    if read_at is None:
        closing = (
            f"The answer is sampled from here on, until one of the stop ids {found['tokenizer']['stop_ids']}."
        )
        closing += f"\nCheck: {example['check']}" if example.get("check") else ""
    else:
        closing = (
            f"The score is read at the last of {count:,} tokens, {_visible(example['pieces'][-1])!r} (id "
        )
        closing += f"{example['ids'][-1]}), place {read_at:,}. Target: {_told(example['target'])}."
    console.print(f"{closing}\nFrom {example['source']}.", markup=False, soft_wrap=True)


def show_tokens(cells: Sequence[tuple[str, str, bool, bool]], console: Console) -> None:
    """Pieces in one line and their ids in the next, as many as fit."""
    width = console.width
    pieces, ids = Text(), Text()

    def flush() -> None:
        console.print(pieces, soft_wrap=True)
        console.print(ids, soft_wrap=True, style="dim")

    for piece, number, special, read in cells:
        size = max(cell_len(piece), len(number)) + 1
        if pieces.cell_len + size > width and pieces.cell_len:
            flush()
            pieces, ids = Text(), Text()
        style = "bold reverse green" if read else "bold magenta" if special else ""
        pieces.append(piece, style=style)
        pieces.append(" " * (size - cell_len(piece)))
        ids.append(f"{number:<{size}}")
    flush()


def _section(title: str, console: Console) -> None:
    console.print()
    console.rule(title, align="left")


def _visible(piece: str) -> str:
    """A piece of text with its white space to be seen."""
    return piece.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍")


def _figure(kappa: float | None) -> str:
    return "not defined" if kappa is None else f"{kappa:.3f}"


def _number(label: str) -> int:
    return int(label) if label.lstrip("+-").isdigit() else 0


def _told(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{_key(name)} {_told(one)}" for name, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _key(name: Any) -> str:
    return f"{signed(name)}:" if isinstance(name, int) else str(name)
