"""`rlhf configs`: the configs that are installed with this package."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from rlhf.config.reading.files import CONFIGS
from rlhf.terminal.output import require_output_folder


def command(
    copy: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Copy all configs into this folder, to edit them.")
    ] = None,
) -> None:
    """List or copy the configs that are installed with rlhf.

    Commands accept the listed names in any folder. `accelerate launch` needs a file: copy the configs first.

    \b
    Examples:
      rlhf configs
      rlhf configs --copy configs
    """
    if copy is None:
        for file in sorted(CONFIGS.rglob("*.yaml")):
            typer.echo(f"{CONFIGS.name}/{file.relative_to(CONFIGS)}")
        return
    require_output_folder(copy)
    shutil.copytree(CONFIGS, copy, dirs_exist_ok=True)
    typer.echo(f"Copied the configs to {copy}.")
