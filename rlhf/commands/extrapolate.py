"""`rlhf extrapolate`: from a weak and a strong model to one further on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    weak: Annotated[
        Path, typer.Argument(metavar="WEAK", help="The `final` folder of the model training began from.")
    ],
    strong: Annotated[
        Path, typer.Argument(metavar="STRONG", help="The `final` folder of the model it led to.")
    ],
    factor: Annotated[
        float, typer.Option(help="0 is the weak model, 1 the strong one; the paper's best was 1.52.")
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="The new folder, in the same form.")],
    rank: Annotated[
        int | None,
        typer.Option(
            min=1, help="Cut the adapter to this rank; by default it is exact, and the two ranks add up."
        ),
    ] = None,
) -> None:
    """Extrapolate two models of one base (ExPO): weak + factor x (strong - weak).

    Both are reward models, or both policies, of this project. Their adapters are combined as weights, exactly, and a
    reward model's head with them. What cutting to a rank loses is printed.

    \b
    Example:
      rlhf extrapolate runs/helpfulness/final runs/preference/final --factor 1.52 --output runs/expo
    """
    from rlhf.adapters.extrapolation import (
        extrapolate_folders,
        require_factor,
    )  # torch loads only when the command runs
    from rlhf.adapters.lowrank import rank_of

    require_factor(factor)
    made = extrapolate_folders(weak, strong, factor, output, rank=rank)
    if made.error:
        typer.echo(
            f"Cut to rank {rank_of(made.update)}: relative error {made.error:.3g} of the weight updates."
        )
    else:
        typer.echo(f"Exact, in rank {rank_of(made.update)}.")
    typer.echo(f"Model: {output}")
