"""What a training command prints with `--dry-run`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import typer

from rlhf.config.schema import RunConfig
from rlhf.runs.output_folder import check_output

Settings = TypeVar("Settings", bound=RunConfig)


def print_dry_run(config: Settings, describe: Callable[[Settings], Sequence[str]], *, resume: bool) -> None:
    """Print notes on the output folder, then the command's description of its run.

    Raises:
        UserError: the run would fail.
    """
    for line in [*check_output(config.output, config, resume=resume), *describe(config)]:
        typer.echo(line)
