"""`rlhf train-reward`: from ratings and preferences to a reward model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rlhf.config.load import load_config
from rlhf.config.reward import RewardConfig
from rlhf.doctor.preflight import require_fit
from rlhf.report import write_report
from rlhf.report.page import REPORT
from rlhf.report.reward import reward_verdict
from rlhf.runs.after import AfterTraining
from rlhf.terminal.benchmarks import print_overall
from rlhf.terminal.dry_run import print_dry_run
from rlhf.terminal.options import Config, DryRun, Output, Overrides, Resume, explain_option


def command(
    config: Config,
    overrides: Overrides = None,
    output: Output = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    _explain: Annotated[bool, explain_option(RewardConfig)] = False,
) -> None:
    """Train a reward model.

    Reads ratings and preferences, trains an adapter and a head on the frozen base, stage by stage, and writes
    the model to RUN/final and its evaluation to RUN/eval.json. `--explain` lists every key of the config;
    `recipe=NAME` trains a row of the paper's table.

    \b
    Examples:
      rlhf train-reward configs/reward/demo.yaml stages.0.epochs=2 --output runs/reward
      rlhf train-reward configs/reward/nemotron-70b.yaml recipe=bt-margin --output runs/margin
    """
    settings = load_config(config, RewardConfig, overrides or (), output)
    from reward.training import recipe

    if dry_run:
        print_dry_run(settings, recipe.dry_run, resume=resume)
        return
    require_fit(settings)
    from rlhf.plan.machine import explained, fit_to_machine
    from rlhf.tracking.trackers import Trackers

    settings = fit_to_machine(settings)
    with explained(settings), AfterTraining() as after, Trackers(settings) as trackers:
        run = recipe.train_reward(settings, resume=resume, after=after, trackers=trackers)
        after.on_main("the report", lambda: trackers.report(write_report(run)))
        after.on_main("the summary", lambda: print_summary(run), needs=run / "eval.json")


def print_summary(run: Path) -> None:
    """Print the verdict, the overall accuracies, and the paths of the results."""
    evaluation = json.loads((run / "eval.json").read_text(encoding="utf-8"))
    verdict = reward_verdict(evaluation)
    typer.echo("\n".join([f"{verdict.label}. {verdict.sentence}", *verdict.more]))
    named = {"held-out pairs": evaluation.get("held_out") or {}, "benchmark": evaluation}
    if not named["held-out pairs"]:
        named = {"held-out pairs": evaluation}
    print_overall({name: result for name, result in named.items() if result.get("subsets")}, Console())
    typer.echo(f"Model: {run / 'final'}\nReport: {run / REPORT}")
