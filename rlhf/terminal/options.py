"""Command-line arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from rlhf.config.reading.explain import describe

Config = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The config file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Override config keys, as in model.base=embedded or stages.0.epochs=2.",
    ),
]
Output = Annotated[
    Path | None, typer.Option(metavar="DIR", help="The run folder; overrides `output` in the config.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Resume the run in the folder.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check the config, count the data, print what would run, and exit.")
]

Form = Annotated[
    str,
    typer.Option(
        metavar="FORM",
        help="`ours`, `classifier` (any AutoModelForSequenceClassification), `nemotron` (NVIDIA's "
        "-Reward-HF: the logit of vocabulary id 0), `principle` (of `rlhf train-principle`), "
        "with `evaluate-reward` also `justifier` (of `rlhf train-justifier`), or `auto`, "
        "which looks at the model's files.",
    ),
]
Label = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The output of a classifier that is the reward, if not the first of several.",
    ),
]
TokensPerBatch = Annotated[
    int | None,
    typer.Option(
        "--tokens-per-batch",
        min=1,
        metavar="N",
        help="Token budget of one forward pass (default: 8,192 on a GPU, 1,024 without); does not change "
        "scores.",
    ),
]


def explain_option(schema: type[BaseModel]) -> Any:
    """An eager option that prints every key of the schema and exits, without a config."""

    def show(wanted: bool) -> None:
        if wanted:
            typer.echo(describe(schema))
            raise typer.Exit

    return typer.Option(
        "--explain", is_eager=True, callback=show, help="List every key of the config and exit."
    )
