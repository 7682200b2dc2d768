"""`rlhf align-policy`: from prompts and a reward model to an aligned policy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from rlhf.config.load import load_config
from rlhf.config.policy import PolicyConfig
from rlhf.doctor.preflight import require_fit
from rlhf.report import write_report
from rlhf.report.files import read_run
from rlhf.report.page import REPORT
from rlhf.report.verdict import change, policy_verdict
from rlhf.runs.after import AfterTraining
from rlhf.terminal.dry_run import print_dry_run
from rlhf.terminal.options import Config, DryRun, Output, Overrides, Resume, explain_option


def command(
    config: Config,
    overrides: Overrides = None,
    output: Output = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    _explain: Annotated[bool, explain_option(PolicyConfig)] = False,
) -> None:
    """Align a policy with a reward model.

    Samples answers to prompts, scores them, and trains the policy's adapter, or all its weights, on the
    rewards, with a KL penalty to the reference. Writes the policy to RUN/final, and its evaluation on
    held-out prompts before and after to RUN/eval.json. `--explain` lists every key of the config.

    \b
    Example:
      rlhf align-policy configs/policy/demo.yaml steps=50 --output runs/policy
    """
    settings = load_config(config, PolicyConfig, overrides or (), output)
    if dry_run:
        from policy.training.dry_run import dry_run as describe  # torch loads only when the command runs

        print_dry_run(settings, describe, resume=resume)
        return
    from policy.recipe import align_policy as align

    require_fit(settings)
    from rlhf.plan.machine import explained, fit_to_machine
    from rlhf.tracking.trackers import Trackers

    settings = fit_to_machine(settings)
    with explained(settings), AfterTraining() as after, Trackers(settings) as trackers:
        run = align(settings, resume=resume, after=after, trackers=trackers)
        after.on_main("the report", lambda: trackers.report(write_report(run)))
        after.on_main("the summary", lambda: print_summary(run), needs=run / "eval.json")


def print_summary(run: Path) -> None:
    """Print the verdict, the evaluation before and after, and the paths of the results."""
    evaluation = json.loads((run / "eval.json").read_text(encoding="utf-8"))
    if stopped := evaluation.get("stopped"):
        typer.echo(stopped["sentence"])
    if "difference" in evaluation:  # the evaluation may have failed
        verdict = policy_verdict(evaluation, read_run(run).metrics)
        typer.echo("\n".join([f"{verdict.label}. {verdict.sentence}", *verdict.more]))
        Console().print(before_and_after(evaluation))
    typer.echo(f"Peak memory of all processes: {peak_of(run):.2f} GiB")
    typer.echo(f"Policy: {run / 'final'}\nReport: {run / REPORT}")


def before_and_after(evaluation: Mapping[str, Any]) -> Table:
    """Means over the held-out prompts before and after, and their difference with its interval."""
    table = Table(title=f"{evaluation['prompts']} held-out prompts, {evaluation['samples']} answers each")
    for column in ("", "before", "after", "difference", "95 % interval"):
        table.add_column(column, justify="right" if column else "left")
    for name in ("reward", "held_out", "gold", "kl", "length"):
        row = change(evaluation, name)
        if row is not None:
            before, after = row.write(row.before), row.write(row.after)
            table.add_row(name.replace("_", "-"), before, after, row.difference, row.interval)
    return table


def peak_of(run: Path) -> float:
    """Peak memory of the run's processes in GiB, from its metrics."""
    with (run / "metrics.jsonl").open(encoding="utf-8") as lines:
        return max(float(json.loads(line).get("memory/peak_gib", 0.0)) for line in lines)
