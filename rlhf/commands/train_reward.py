"""`rlhf train-reward`: from ratings and preferences to a reward model."""

from __future__ import annotations

from typing import Annotated

import typer

from rlhf.commands.options import Config, DryRun, Output, Overrides, Resume, explain_option
from rlhf.config.load import load_config
from rlhf.config.reward import RewardConfig


def command(
    config: Config,
    overrides: Overrides = None,
    output: Output = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    _explain: Annotated[bool, explain_option(RewardConfig)] = False,
) -> None:
    """Train a reward model.

    Reads ratings and preferences, trains an adapter and a head on the frozen base, stage by stage, and leaves the
    model in RUN/final and its evaluation in RUN/eval.json. `--explain` lists every key of the config.

    \b
    Example:
      rlhf train-reward configs/reward/demo.yaml stages.0.epochs=2 --output runs/mine
    """
    told = load_config(config, RewardConfig, overrides or (), output)
    from reward import recipe  # torch loads only when the command runs

    if dry_run:
        for line in recipe.dry_run(told):
            typer.echo(line)
        return
    typer.echo(f"Done: {recipe.train_reward(told, resume=resume)}")
