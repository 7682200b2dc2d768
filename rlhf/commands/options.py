"""The arguments that the two training commands share, so that they read and behave alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from rlhf.config.explain import describe

Config = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The config file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Config keys to set instead, as in model.base=embedded or stages.0.epochs=2.",
    ),
]
Output = Annotated[
    Path | None, typer.Option(metavar="DIR", help="The run folder; wins over `output` in the config.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check the config, count the data, say what would run, and stop.")
]

Form = Annotated[
    str,
    typer.Option(
        metavar="FORM",
        help="`ours`, `classifier` (any AutoModelForSequenceClassification), `nemotron` (NVIDIA's -Reward-HF: the "
        "logit of vocabulary id 0), or `auto`, which looks at reward.json and config.json.",
    ),
]
Label = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Which output of a classifier is the reward, if it has several and not the first.",
    ),
]
TokensPerBatch = Annotated[
    int | None,
    typer.Option(
        "--tokens-per-batch",
        min=1,
        metavar="N",
        help="Token budget of one forward pass (default: 8,192 on a GPU, 1,024 without); no score depends on it.",
    ),
]


def explain_option(schema: type[BaseModel]) -> Any:
    """An option that, like `--help`, needs no config: it prints every key of the schema and ends."""

    def show(wanted: bool) -> None:
        if wanted:
            typer.echo(describe(schema))
            raise typer.Exit

    return typer.Option(
        "--explain", is_eager=True, callback=show, help="List every key of the config, and stop."
    )
