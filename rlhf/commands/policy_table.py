"""`rlhf policy-table`: trains and compares all rows of the paper's policy table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlhf.commands.paper_table import run_command, show
from rlhf.config.load import load_config
from rlhf.config.policy_table import PolicyTableConfig
from rlhf.terminal.options import Config, DryRun, Output, Overrides, explain_option


def command(
    config: Config,
    overrides: Overrides = None,
    output: Output = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds per row: 0, 1, ...")] = 3,
    dry_run: DryRun = False,
    _explain: Annotated[bool, explain_option(PolicyTableConfig)] = False,
) -> None:
    """Train and compare all rows of the paper's policy table at equal KL.

    DPO regular, margin and scaled, PPO, REINFORCE, and best of n, on the same preferences, prompts and reward
    model. Each policy answers the same held-out prompts; a held-out reward model compares its answers with
    the base's. Adapters are scaled to the same KL to the base. The same command resumes an interrupted table.
    Writes RUN/report.html, and table.md, table.json and table.svg beside it.

    \b
    Example:
      rlhf policy-table configs/policy-table/demo.yaml --seeds 3 --output runs/policy-table
    """
    settings = load_config(config, PolicyTableConfig, overrides or (), output)
    chosen = list(range(seeds))
    from policy.table import page, run, summary  # torch loads only when the command runs

    if dry_run:
        for line in run.plan_lines(settings, chosen):
            typer.echo(line)
        return

    def train(name: str, file: Path, folder: Path, resume: bool) -> None:
        run_command(name, file, "--output", folder, *(["--resume"] if resume else []))

    run.fill_table(settings, chosen, train=train, say=typer.echo)
    result = summary.summarise(summary.read_paths(settings.output, chosen), chosen, settings.evaluation)
    written = page.write(settings.output, result)
    show(list(page.tables(result).values()))
    typer.echo("\n".join([*page.lead(result), *page.notes(result)]))
    typer.echo(f"Report: {written}; the same as table.md, table.json and table.svg beside it.")
