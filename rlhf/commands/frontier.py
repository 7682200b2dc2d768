"""`rlhf frontier`: reward against KL, run beside run, and what they have at equal KL."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rlhf.commands.compared import print_table
from rlhf.core.errors import ConfigError, OutputError


def command(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of `rlhf align-policy` runs.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="For report.html, frontier.svg, .png, .md and .json; may be there already."
        ),
    ],
    best_of: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="compare.json of `rlhf compare ... --best-of 1,2,4,8,16`, drawn as a yardstick.",
        ),
    ] = None,
    kl: Annotated[
        str | None,
        typer.Option(
            metavar="K,K,...", help="The KL values of the table, in nats an answer; else round ones."
        ),
    ] = None,
    square_root: Annotated[
        bool,
        typer.Option(
            "--square-root", help="Draw over the square root of the KL, as the literature often does."
        ),
    ] = False,
) -> None:
    """Draw reward against KL for several runs, and compare them where they are equally far from the reference.

    Runs whose configs differ in nothing but the seed (or how far they go) are one group, with a mean and an interval
    over seeds. A second reward model (reward/held_out) and the gold score are drawn beside the reward where runs have
    them. Runs may be of any length, still going, or ended by their KL budget: a dash stands where a run never got.

    \b
    Examples:
      rlhf frontier runs/reinforce-* runs/rloo-* --output runs/frontier
      rlhf compare embedded embedded --prompts runs/rloo-0 --reward runs/reward/final --best-of 1,2,4,8,16 --output runs/best
      rlhf frontier runs/rloo-* --best-of runs/best/compare.json --kl 1,2,5,10 --output runs/frontier
    """
    from rlhf.report.frontier import read_best_of, read_tracks, summarise
    from rlhf.report.frontier_page import lead, notes, printed, write

    levels = _levels(kl)
    if (output.exists() and not output.is_dir()) or not os.access(
        next(one for one in (output.absolute(), *output.absolute().parents) if one.exists()), os.W_OK
    ):
        raise OutputError(f"--output {output} is no folder that can be written to.")
    summary = summarise(read_tracks(runs), read_best_of(best_of) if best_of else [], levels)
    console = Console(highlight=False)
    for table in printed(summary):
        print_table(table, console)
    for line in (*lead(summary), *notes(summary)):
        console.print(line, markup=False, soft_wrap=True)
    page = write(output, summary, root=square_root)
    console.print(f"Report: {page}", markup=False, soft_wrap=True)


def _levels(told: str | None) -> list[float] | None:
    if told is None:
        return None
    try:
        levels = [float(part) for part in told.split(",")]
    except ValueError:
        levels = [-1.0]
    if not all(0 <= level < float("inf") for level in levels):
        raise ConfigError(
            f"--kl {told} is no list of KL values.", allowed="numbers from 0", fix="--kl 1,2,5,10"
        )
    return levels
