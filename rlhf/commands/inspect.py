"""`rlhf inspect`: shows the data of a config: counts, drops, lengths, and one example in tokens."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from rlhf.config.reading.either import load_either
from rlhf.config.reward import RewardConfig
from rlhf.terminal.options import Config, Overrides


def command(
    config: Config,
    overrides: Overrides = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as one JSON object, the example in full.")
    ] = False,
) -> None:
    """Show the data of a config before training.

    Prints for each source the rows read, kept and dropped, with reasons and places; for raw annotations, the
    agreement of annotators and whether the computed aggregate is the published one; the training targets;
    lengths in tokens; and one example in tokens, with the position of its score. For configs of train-reward
    and align-policy. Loads the tokenizer, no weights.

    \b
    Example:
      rlhf inspect configs/reward/demo.yaml model.max_length=256
    """
    settings = load_either(config, overrides or ())
    from rlhf.inspection.measure import inspect_policy, inspect_reward
    from rlhf.inspection.tables import print_tables

    result = inspect_reward(settings) if isinstance(settings, RewardConfig) else inspect_policy(settings)
    if as_json:
        typer.echo(json.dumps({"config": str(config), **result}, indent=2, allow_nan=False))
    else:
        print_tables(result, Console(highlight=False))
