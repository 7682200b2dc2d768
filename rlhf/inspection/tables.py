"""Prints the result of `rlhf inspect` as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf.data.agreement import signed

BAR = 40
"""Characters of the longest bar."""
SHARES = ("second response preferred", "longer response preferred")
"""The training targets that are shares of the pairs."""
FIRST, LAST = 60, 48
"""Number of tokens of the example that are printed, at its beginning and its end."""


def print_tables(inspected: Mapping[str, Any], console: Console) -> None:
    """Print the result of `rlhf.inspection.measure`."""
    show_sources(inspected, console)
    for name, result in inspected.get("agreement", {}).items():
        show_agreement(name, result, console)
    for name, result in inspected.get("rating_agreement", {}).items():
        show_rating_agreement(name, result, console)
    show_targets(inspected["targets"], console)
    if inspected["lengths"]:
        show_lengths(inspected, console)
    show_example(inspected, console)


def show_sources(inspected: Mapping[str, Any], console: Console) -> None:
    """Print one line per source, and below it one per drop reason with its first places."""
    _section("Rows", console)
    for name, part in inspected["sources"].items():
        dropped = part["read"] - part["kept"]
        line = f"{name}: {part['read']:,} read, {part['kept']:,} kept, {dropped:,} dropped"
        console.print(line, markup=False, soft_wrap=True)
        _show_reasons(part["dropped"], console)
        _show_notes(part.get("notes", {}), console)
    _show_notes(inspected["notes"], console)
    if inspected["dropped_later"]:
        console.print("of these, after all sources were joined:")
        _show_reasons(inspected["dropped_later"], console)


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
    """Print kappa before and after filtering, drops, and the computed aggregate beside the published one."""
    _section(f"Annotators of {name}", console)
    pairs, kept = result["pairs"], result["kept"]
    console.print(
        f"{pairs:,} pairs, {result['annotations']:,} valid annotations, {result['invalid']:,} that call "
        f"neither response valid. The config has `annotations: {result['annotations_key']}`.",
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
    lines = [
        f"The filters keep {kept:,} ({kept / pairs:.1%})" + (f"; dropped: {dropped}." if dropped else ".")
    ]
    if kept:
        lines.append(f"Strengths: {strengths}. Response 2 is preferred in {result['second_preferred']:.1%}.")
    if result["compared_three"]:
        share = result["equal_three"] / result["compared_three"]
        lines.append(f"The three most similar annotations are the published ones in {share:.2%}.")
    console.print("\n".join(lines), markup=False)
    if result["compared"]:
        show_confusion(result, console)


def show_confusion(result: Mapping[str, Any], console: Console) -> None:
    """Print published strength against the computed aggregate, and the first rows that differ."""
    share = result["equal"] / result["compared"]
    console.print(
        f"The computed aggregate is the published strength in {share:.2%} of {result['compared']:,} pairs:"
    )
    ours = {label for cells in result["confusion"].values() for label in cells}
    order = sorted(ours, key=lambda label: (not label.lstrip("+-").isdigit(), _number(label), label))
    table = Table(box=None, pad_edge=False)
    table.add_column("published \\ computed", justify="right")
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
            f"  {row['place']}: {row['annotations']} is {row['published']} published, {row['ours']} computed",
            markup=False,
            soft_wrap=True,
        )


def show_rating_agreement(name: str, result: Mapping[str, Any], console: Console) -> None:
    """Print the kappa of each attribute, before and after filtering."""
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
    """Print the training targets, one number per line."""
    _section("Training targets", console)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column()
    for name, value in targets.items():
        if value not in ({}, [], None):
            table.add_row(name, f"{value:.1%}" if name in SHARES else _as_text(value))
    console.print(table)


def show_lengths(inspected: Mapping[str, Any], console: Console) -> None:
    """Print quantiles and a histogram, with the part beyond the limit in colour."""
    lengths, limit = inspected["lengths"], inspected["limit"]
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
    left_out = ", ".join(f"{count:,} {name}" for name, count in inspected["too_long"].items() if count)
    console.print(
        f"{lengths['longer']:,} are longer than {limit} = {lengths['limit']:,}"
        + (f"; dropped: {left_out}." if left_out else ".")
    )


def show_example(inspected: Mapping[str, Any], console: Console) -> None:
    """Print each token above its id, with special tokens and the position of the score in colour."""
    _section("One example in tokens", console)
    for note in inspected["tokenizer"]["notes"]:
        console.print(note, markup=False)
    example = inspected["example"]
    if example is None:
        console.print("No example is left.")
        return
    read_at = example.get("read_at")
    special = set(example["special"])
    count = len(example["ids"])
    cells = [
        (_visible(piece), str(token), place in special, place == read_at)
        for place, (piece, token) in enumerate(zip(example["pieces"], example["ids"], strict=True))
    ]
    if count > FIRST + LAST:
        hidden = count - FIRST - LAST
        show_tokens(cells[:FIRST], console)
        console.print(f"... {hidden:,} more tokens ...\n", style="dim")
        show_tokens(cells[-LAST:], console)
    else:
        show_tokens(cells, console)
    if read_at is None:
        stop_ids = inspected["tokenizer"]["stop_ids"]
        closing = f"The answer is sampled from here, until one of the stop ids {stop_ids}."
        closing += f"\nCheck: {example['check']}" if example.get("check") else ""
    else:
        closing = (
            f"The score is read at the last of {count:,} tokens, {_visible(example['pieces'][-1])!r} (id "
        )
        closing += f"{example['ids'][-1]}), position {read_at:,}. Target: {_as_text(example['target'])}."
    console.print(f"{closing}\nFrom {example['source']}.", markup=False, soft_wrap=True)


def show_tokens(cells: Sequence[tuple[str, str, bool, bool]], console: Console) -> None:
    """Print pieces in one line and their ids in the next, wrapped at the width of the terminal."""
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
    """A piece of text with visible white space."""
    return piece.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍")


def _figure(kappa: float | None) -> str:
    return "not defined" if kappa is None else f"{kappa:.3f}"


def _number(label: str) -> int:
    return int(label) if label.lstrip("+-").isdigit() else 0


def _as_text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{_key(name)} {_as_text(item)}" for name, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _key(name: Any) -> str:
    return f"{signed(name)}:" if isinstance(name, int) else str(name)
