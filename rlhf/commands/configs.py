"""`rlhf configs`: the configs that come with this package."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from rlhf.commands.output import require_output_folder
from rlhf.config.files import CONFIGS


def command(
    copy: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Copy all of them into this folder, to change them.")
    ] = None,
) -> None:
    """List the configs that come with rlhf, or copy them.

    A command takes them by the name that is listed, from any folder. `accelerate launch` needs a file: copy them first.

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
