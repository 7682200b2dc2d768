"""`rlhf train-principle`: an adapter that scores responses by principles in words."""

from __future__ import annotations

from typing import Annotated

import typer

from rlhf.config.load import load_config
from rlhf.config.principle import PrincipleConfig
from rlhf.terminal.dry_run import print_dry_run
from rlhf.terminal.options import Config, DryRun, Output, Overrides, Resume, explain_option


def command(
    config: Config,
    overrides: Overrides = None,
    output: Output = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    _explain: Annotated[bool, explain_option(PrincipleConfig)] = False,
) -> None:
    """Train an adapter that scores a response by a principle in words.

    It learns from responses with a principle and whether it is fulfilled (HelpSteer3's `principle`). The
    score is logit(Yes) - logit(No) of the next token after the question whether the response satisfies the
    principle: no head, and any principle can be used afterwards, in `rlhf score --principle` and in `reward:
    {principle: ...}`.

    \b
    Example:
      rlhf train-principle configs/principle/demo.yaml --output runs/principle
    """
    settings = load_config(config, PrincipleConfig, overrides or (), output)
    from reward.principle import recipe  # torch loads only when the command runs

    if dry_run:
        print_dry_run(settings, recipe.dry_run, resume=resume)
        return
    result = recipe.train_principle(settings, resume=resume)
    if result:
        low, high = (100 * end for end in result["ci95"])
        typer.echo(
            f"Held out: {100 * result['accuracy']:.1f} % of {result['count']} judgements are right (95 % "
            f"interval {low:.1f} to {high:.1f}); always giving the more frequent answer: "
            f"{100 * result['majority']:.1f} %."
        )
    typer.echo(f"Model: {settings.output / 'final'}")
