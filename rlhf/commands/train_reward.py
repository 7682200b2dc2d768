"""`rlhf train-reward`: from ratings and preferences to a reward model."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from rlhf.commands.judged import print_result
from rlhf.commands.options import Config, DryRun, Output, Overrides, Resume, explain_option
from rlhf.config.load import load_config
from rlhf.config.reward import RewardConfig
from rlhf.distributed.processes import is_main
from rlhf.doctor.preflight import require_fit
from rlhf.report import write_report


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
    model in RUN/final and its evaluation in RUN/eval.json. `--explain` lists every key of the config; with
    `recipe=NAME` it is a row of the paper's table.

    \b
    Examples:
      rlhf train-reward configs/reward/demo.yaml stages.0.epochs=2 --output runs/mine
      rlhf train-reward configs/reward/nemotron-70b.yaml recipe=bt-margin --output runs/margin
    """
    told = load_config(config, RewardConfig, overrides or (), output)
    from reward import recipe  # torch loads only when the command runs

    if dry_run:
        for line in recipe.dry_run(told):
            typer.echo(line)
        return
    require_fit(told)
    run = recipe.train_reward(told, resume=resume)
    if not is_main():
        return
    evaluation = json.loads((run / "eval.json").read_text())
    console = Console()
    for result in (evaluation.get("held_out"), evaluation):
        if result and result.get("subsets"):
            print_result("pairs", result, console)
    typer.echo(f"Model: {run / 'final'}\nReport: {write_report(run)}")
