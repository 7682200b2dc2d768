"""Prints the tables of `rlhf compare` and `rlhf frontier`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from rlhf.report.comparisons.winrate import best_of_table, mean_table, notes, sentence, win_table


def print_comparison(result: Mapping[str, Any], dropped: Sequence[str], console: Console) -> None:
    """Print the tables of a comparison, its conclusion, and the dropped prompts."""
    for cells in (win_table(result), mean_table(result), best_of_table(result)):
        if cells:
            print_table(cells, console)
    for line in (sentence(result), *notes(result), *dropped):
        console.print(line, markup=False, soft_wrap=True)


def print_table(cells: Sequence[Sequence[str]], console: Console) -> None:
    """Print rows of cells, the header first, as a table; the first column is text, the others are numbers."""
    header, *rows = cells
    table = Table()
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
