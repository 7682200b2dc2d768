"""`rlhf report`: writes the report page of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rlhf.core.errors import OutputError
from rlhf.report import write_report
from rlhf.search.page import write_page
from rlhf.search.results import RESULTS


def command(
    run: Annotated[
        Path,
        typer.Argument(
            help="The folder of a `train-reward` or `align-policy` run, finished or not, or of a search."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(help="Write the page here instead of to RUN/report.html.")
    ] = None,
) -> None:
    """Write the report of a run: verdict, curves, and answers before and after.

    The page is one self-contained file. For an unfinished run it shows the results so far, and lists what is
    missing.

    Example: rlhf report runs/demo/policy
    """
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        raise OutputError(
            f"The report cannot be written to {output}.", allowed="a file in a folder that exists"
        )
    write = write_page if (run / RESULTS).is_file() else write_report
    Console().print(f"Wrote {write(run, output)}", markup=False, soft_wrap=True)
