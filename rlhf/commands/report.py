"""`rlhf report`: one page on a run."""

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
            help="The folder of a `train-reward` or `align-policy` run, finished or not; or of a search."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(help="Write the page here instead of to RUN/report.html.")
    ] = None,
) -> None:
    """Write one self-contained page on a run: verdict, curves, and answers before and after.

    The page opens from disk and loads nothing from the network. Of a run that is still going it shows what
    there is, and says what is missing.

    Example: rlhf report runs/demo/policy
    """
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        raise OutputError(
            f"The page cannot be written to {output}.", allowed="a file in a folder that exists"
        )
    write = write_page if (run / RESULTS).is_file() else write_report
    Console().print(f"Wrote {write(run, output)}", markup=False, soft_wrap=True)
