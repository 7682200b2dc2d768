"""`rlhf train-justifier`: a model that compares two responses in words."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from rlhf.config.justifier import JustifierConfig
from rlhf.config.load import load_config
from rlhf.terminal.benchmarks import print_judge
from rlhf.terminal.dry_run import print_dry_run
from rlhf.terminal.options import Config, DryRun, Output, Overrides, Resume, explain_option


def command(
    config: Config,
    overrides: Overrides = None,
    output: Output = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    _explain: Annotated[bool, explain_option(JustifierConfig)] = False,
) -> None:
    """Train the Pairwise Justifier of HelpSteer2-Preference's paper.

    It learns from annotators' texts to write a justification of which of two responses is better, and the
    verdict last ("@Response 2 is slightly better than @Response 1."). TRL's SFTTrainer, LoRA on the frozen
    base.

    \b
    Examples:
      rlhf train-justifier configs/justifier/demo.yaml --output runs/justifier
      rlhf evaluate-reward runs/justifier/final --form justifier --data judgebench
    """
    settings = load_config(config, JustifierConfig, overrides or (), output)
    from reward.justifier import recipe  # torch loads only when the command runs

    if dry_run:
        print_dry_run(settings, recipe.dry_run, resume=resume)
        return
    result = recipe.train_justifier(settings, resume=resume)
    if "overall" in result:
        low, high = (100 * end for end in result["intervals"]["overall"])
        typer.echo(
            f"Held out: {100 * result['overall']:.1f} % of {result['count']} pairs are right in both orders "
            f"together (95 % interval {low:.1f} to {high:.1f}; ties wrong)."
        )
    if result:
        print_judge(result["judge"], Console(highlight=False))
    typer.echo(f"Model: {settings.output / 'final'}")
