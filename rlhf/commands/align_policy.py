"""`rlhf align-policy`: from prompts and a reward model to an aligned policy."""

from __future__ import annotations

from typing import Annotated

import typer

from rlhf.commands.options import Config, DryRun, Output, Overrides, Resume, explain_option
from rlhf.config.load import load_config
from rlhf.config.policy import PolicyConfig


def command(
    config: Config,
    overrides: Overrides = None,
    output: Output = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    _explain: Annotated[bool, explain_option(PolicyConfig)] = False,
) -> None:
    """Align a policy with a reward model.

    Samples answers to prompts, scores them, and moves the policy's adapter towards better ones, held close to the
    base by a KL penalty. Leaves the adapter in RUN/final, and held-out prompts before and after in
    RUN/eval.json. `--explain` lists every key of the config.

    \b
    Example:
      rlhf align-policy configs/policy/demo.yaml steps=50 --output runs/mine
    """
    told = load_config(config, PolicyConfig, overrides or (), output)
    from policy import recipe  # torch loads only when the command runs

    if dry_run:
        for line in recipe.dry_run(told):
            typer.echo(line)
        return
    typer.echo(f"Done: {recipe.align_policy(told, resume=resume)}")
