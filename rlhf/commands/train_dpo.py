"""`rlhf train-dpo`: from preferences to an aligned policy, without a reward model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rlhf.config.dpo import DPOConfig
from rlhf.config.load import load_config
from rlhf.report import write_report
from rlhf.report.page import REPORT
from rlhf.report.reward import IMPLICIT, reward_verdict
from rlhf.runs.after import AfterTraining
from rlhf.terminal.dry_run import print_dry_run
from rlhf.terminal.options import Config, DryRun, Output, Overrides, Resume, explain_option


def command(
    config: Config,
    overrides: Overrides = None,
    output: Output = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    _explain: Annotated[bool, explain_option(DPOConfig)] = False,
) -> None:
    """Align a policy with preferences by DPO.

    Direct preference optimisation trains the policy on pairs of answers: no reward model, no sampling. `loss`
    is `regular`, or the paper's `margin` or `scaled`, which use the preference strength. The reference is the
    base. RUN/final is a policy like that of `rlhf align-policy`, for `rlhf chat`, `generate`, `compare` and
    `export`.

    \b
    Example:
      rlhf train-dpo configs/dpo/demo.yaml loss=scaled --output runs/dpo
    """
    settings = load_config(config, DPOConfig, overrides or (), output)
    from policy.dpo import recipe  # torch loads only when the command runs

    if dry_run:
        print_dry_run(settings, recipe.dry_run, resume=resume)
        return
    from rlhf.tracking.trackers import Trackers

    with AfterTraining() as after, Trackers(settings) as trackers:
        run = recipe.train_dpo(settings, resume=resume, after=after, trackers=trackers)
        after.on_main("the report", lambda: trackers.report(write_report(run)))
        after.on_main("the summary", lambda: print_summary(run), needs=run / "eval.json")


def print_summary(run: Path) -> None:
    """Print the verdict on held-out pairs, and the paths of the results."""
    evaluation = json.loads((run / "eval.json").read_text(encoding="utf-8"))
    if "overall" in evaluation:
        verdict = reward_verdict(evaluation, IMPLICIT)
        typer.echo("\n".join([f"{verdict.label}. {verdict.sentence}", *verdict.more]))
    typer.echo(f"Policy: {run / 'final'}\nReport: {run / REPORT}")
