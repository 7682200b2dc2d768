"""`rlhf report`: writes the report page of a run, or one page on several runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rlhf.core.errors import ConfigError, OutputError
from rlhf.report import write_report
from rlhf.report.comparisons.several import write_several
from rlhf.runs.folder import in_use
from rlhf.search.results import RESULTS, write_page

RELOAD = 10
"""Seconds between two versions of a page that is watched."""


def command(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Run folders of the training commands, finished or not; or one folder of a search.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            help="Write the page here instead of to RUN/report.html, or runs.html beside several runs."
        ),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="Write the page again while a run is in progress; the page reloads itself."
        ),
    ] = False,
) -> None:
    """Write the report of a run: verdict, curves, answers before and after, and samples.

    The page is one self-contained file. For an unfinished run it shows the results so far, and lists what is
    missing. Several runs share one page: results, config differences, and curves in one chart.

    \b
    Examples:
      rlhf report runs/demo/policy
      rlhf report runs/a runs/b --output compare.html
      rlhf report --watch runs/demo/policy
    """
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        raise OutputError(
            f"The report cannot be written to {output}.", allowed="a file in a folder that exists"
        )
    searches = [run for run in runs if (run / RESULTS).is_file()]
    if searches and (watch or len(runs) > 1):
        raise ConfigError(
            f"{searches[0]} is a search: its page is written alone, and not watched.",
            fix=f"rlhf report {searches[0]}",
        )
    console = Console()
    running = watch and any(map(in_use, runs))
    console.print(f"Wrote {_write(runs, output, live=RELOAD * running)}", markup=False, soft_wrap=True)
    if watch and not running:
        console.print("No run is in progress: nothing to watch.")
    while running:
        time.sleep(RELOAD)
        running = any(map(in_use, runs))
        _write(runs, output, live=RELOAD * running)


def _write(runs: list[Path], output: Path | None, *, live: int) -> Path:
    if len(runs) > 1:
        return write_several(runs, output, live=live)
    if (runs[0] / RESULTS).is_file():
        return write_page(runs[0], output)
    return write_report(runs[0], output, live=live)
