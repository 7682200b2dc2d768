"""`rlhf align-policy`: from prompts and a reward model to an aligned policy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from rlhf.commands.options import Config, DryRun, Output, Overrides, Resume, explain_option
from rlhf.config.load import load_config
from rlhf.config.policy import PolicyConfig
from rlhf.doctor.preflight import require_fit
from rlhf.report import write_report
from rlhf.report.files import read_run
from rlhf.report.page import REPORT
from rlhf.report.verdict import change, policy_verdict
from rlhf.runs.after import AfterTraining


def command(
    config: Config,
    overrides: Overrides = None,
    output: Output = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    _explain: Annotated[bool, explain_option(PolicyConfig)] = False,
) -> None:
    """Align a policy with a reward model.

    Samples answers to prompts, scores them, and moves the policy's adapter, or all its weights, towards better ones, held
    close to the base by a KL penalty. Leaves the policy in RUN/final, and held-out prompts before and after in
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
    require_fit(told)
    from rlhf.plan.machine import explained, fit_to_machine
    from rlhf.tracking.trackers import Trackers

    told = fit_to_machine(told)
    with explained(told), AfterTraining() as after, Trackers(told) as trackers:
        run = recipe.align_policy(told, resume=resume, after=after, trackers=trackers)
        after.on_main("the report", lambda: trackers.report(write_report(run)))
        after.on_main("the summary", lambda: print_summary(run))


def print_summary(run: Path) -> None:
    """What the evaluation found, and where everything is."""
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
    """The held-out prompts' means before and after, and the difference with its interval."""
    table = Table(title=f"{evaluation['prompts']} held-out prompts, {evaluation['samples']} answers to each")
    for column in ("", "before", "after", "difference", "95 % interval"):
        table.add_column(column, justify="right" if column else "left")
    for name in ("reward", "held_out", "gold", "kl", "length"):
        found = change(evaluation, name)
        if found is not None:
            before, after = found.write(found.before), found.write(found.after)
            table.add_row(name.replace("_", "-"), before, after, found.difference, found.interval)
    return table


def peak_of(run: Path) -> float:
    """Highest memory of the run's processes in GiB, as its metrics tell it."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return max(float(json.loads(line).get("memory/peak_gib", 0.0)) for line in lines)
