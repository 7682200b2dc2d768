"""`rlhf extrapolate`: extrapolates from a weak to a strong checkpoint (ExPO)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    weak: Annotated[
        Path,
        typer.Argument(metavar="WEAK", help="The `final` folder of the weak model, the start of training."),
    ],
    strong: Annotated[
        Path,
        typer.Argument(
            metavar="STRONG", help="The `final` folder of the strong model, the result of training."
        ),
    ],
    factor: Annotated[
        float, typer.Option(help="0 is the weak model, 1 the strong one; the paper's best was 1.52.")
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="The new folder, in the same form.")],
    rank: Annotated[
        int | None,
        typer.Option(
            min=1, help="Truncate the adapter to this rank; default: exact, with the sum of both ranks."
        ),
    ] = None,
) -> None:
    """Extrapolate two models of one base (ExPO): weak + factor x (strong - weak).

    Both are reward models, or both policies, of this project. Their weight updates are combined exactly, and
    so are the heads of reward models. The error of a truncation to `--rank` is printed.

    \b
    Example:
      rlhf extrapolate runs/helpfulness/final runs/preference/final --factor 1.52 --output runs/expo
    """
    # torch loads only when the command runs
    from rlhf.adapters.extrapolation import extrapolate_folders, require_factor
    from rlhf.adapters.lowrank import rank_of

    require_factor(factor)
    extrapolated = extrapolate_folders(weak, strong, factor, output, rank=rank)
    if extrapolated.error:
        typer.echo(
            f"Truncated to rank {rank_of(extrapolated.update)}: relative error {extrapolated.error:.3g} of "
            "the weight updates."
        )
    else:
        typer.echo(f"Exact, with rank {rank_of(extrapolated.update)}.")
    typer.echo(f"Model: {output}")
