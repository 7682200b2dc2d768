"""`rlhf frontier`: plots reward against KL for several runs, and compares them at equal KL."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rlhf.core.errors import ConfigError, OutputError
from rlhf.terminal.comparisons import print_table


def command(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of `rlhf align-policy` runs.")
    ],
    output: Annotated[
        Path,
        typer.Option(metavar="DIR", help="For report.html, frontier.svg, .png, .md and .json; may exist."),
    ],
    best_of: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="compare.json of `rlhf compare ... --best-of 1,2,4,8,16`, drawn as a baseline.",
        ),
    ] = None,
    kl: Annotated[
        str | None,
        typer.Option(
            metavar="K,K,...", help="KL values of the table, in nats per answer; default: round values."
        ),
    ] = None,
    square_root: Annotated[
        bool,
        typer.Option(
            "--square-root", help="Plot over the square root of the KL, as often in the literature."
        ),
    ] = False,
) -> None:
    """Plot reward against KL for several runs, and compare them at equal KL to the reference.

    Runs whose configs differ only in the seed (or the number of steps) form a group, with a mean and an
    interval over seeds. The held-out reward (reward/held_out) and the gold score are plotted if runs have
    them. Runs may have any length, be unfinished, or stopped by their KL budget: a dash marks KL values that
    a run did not reach.

    \b
    Examples:
      rlhf frontier runs/reinforce-* runs/rloo-* --output runs/frontier
      rlhf compare embedded embedded --prompts runs/a --reward runs/r/final --best-of 1,4,16 --output runs/b
      rlhf frontier runs/rloo-* --best-of runs/b/compare.json --kl 1,2,5,10 --output runs/frontier
    """
    from rlhf.report.comparisons.best_of import mismatches, read_best_of
    from rlhf.report.comparisons.frontier import read_runs, summarise, tracks_of
    from rlhf.report.comparisons.frontier_page import lead, notes, printed, write

    levels = _levels(kl)
    if (output.exists() and not output.is_dir()) or not os.access(
        next(path for path in (output.absolute(), *output.absolute().parents) if path.exists()), os.W_OK
    ):
        raise OutputError(f"--output {output} is not a writable folder.", fix="name another folder")
    files = read_runs(runs)
    baseline = read_best_of(best_of) if best_of else None
    remarks = mismatches(baseline, files) if baseline else []
    summary = summarise(tracks_of(files), baseline.curve if baseline else [], levels, remarks)
    console = Console(highlight=False)
    for table in printed(summary):
        print_table(table, console)
    for line in (*lead(summary), *notes(summary)):
        console.print(line, markup=False, soft_wrap=True)
    page = write(output, summary, root=square_root)
    console.print(f"Report: {page}", markup=False, soft_wrap=True)


def _levels(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        levels = [float(part) for part in text.split(",")]
    except ValueError:
        levels = [-1.0]
    if not all(0 <= level < float("inf") for level in levels):
        raise ConfigError(
            f"--kl {text} is not a list of KL values.", allowed="numbers from 0", fix="--kl 1,2,5,10"
        )
    return levels
