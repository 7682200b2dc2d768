"""Tables of measured figures beside their targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def show(title: str, lines: Sequence[Mapping[str, Any]]) -> None:
    """Target and measured, one figure a row."""
    table = Table(title=title, title_justify="left")
    for column in ("", "target", "measured", ""):
        table.add_column(column, overflow="fold")
    for line in lines:
        table.add_row(str(line["what"]), target(line), figure(line), verdict(line))
    Console(width=130).print(table)


def target(line: Mapping[str, Any]) -> str:
    """The target in words."""
    for bound, word in (("least", "at least"), ("most", "at most")):
        if line[bound] is not None:
            return f"{word} {number(line[bound])}{unit_of(line)}"
    return ""


def figure(line: Mapping[str, Any]) -> str:
    """The measured value in words."""
    if line["measured"] is None:
        return f"not measured: {line['note']}" if line["note"] else "not measured"
    return f"{number(line['measured'])}{unit_of(line)}" + (f" ({line['note']})" if line["note"] else "")


def verdict(line: Mapping[str, Any]) -> str:
    """Met or not; empty where there is no target, or no figure."""
    if line["measured"] is None or (line["least"] is None and line["most"] is None):
        return ""
    met = line["measured"] >= line["least"] if line["least"] is not None else line["measured"] <= line["most"]
    return "met" if met else "NOT met"


def number(value: float) -> str:
    """Three digits that count, or so."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def unit_of(line: Mapping[str, Any]) -> str:
    """The unit after a number."""
    unit = str(line["unit"])
    return unit if unit in ("", "x") else f" {unit}"
