"""`rlhf paper-table`: every row of the paper's reward table on one's own data and base."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from rlhf.commands.options import Config, Output, Overrides
from rlhf.config.load import load_config
from rlhf.config.reward import RewardConfig
from rlhf.core.errors import ConfigError, RunError


def command(
    config: Config,
    overrides: Overrides = None,
    output: Output = None,
    seeds: Annotated[int, typer.Option(min=1, help="How often each row is trained: seeds 0, 1, ...")] = 3,
    factor: Annotated[
        float, typer.Option(help="ExPO's factor; 1.52 is the paper's, and nothing is searched.")
    ] = 1.52,
) -> None:
    """Train every row of the paper's reward table on the same data, and compare.

    Regression on all attributes and on helpfulness, Bradley-Terry in three forms, from scratch and from the
    helpfulness model, ExPO, and both losses at once, judged on the same held-out pairs (see data.test_share). The
    config's stages are called `regression` and `preference`; each row takes those it needs. Run again, it goes on
    with what is missing. Writes RUN/report.html, and table.md, table.json and table.svg beside it.

    \b
    Example:
      rlhf paper-table configs/reward/paper-table.yaml --seeds 3 --output runs/paper-table
    """
    told = load_config(config, RewardConfig, overrides or (), output)
    if not told.data.test_share:
        raise ConfigError(
            "data.test_share is 0, so the figures would be taken on the pairs that chose the checkpoints.",
            allowed="a share in 0..1",
            fix="data.test_share=0.2",
        )
    from reward.evaluation import paper_table  # torch loads only when the command runs

    def train(name: str, seed: int, folder: Path, start: Path | None) -> None:
        settings = [f"recipe={name}", f"seed={seed}", *([f"start={start}"] if start else [])]
        resume = ["--resume"] if folder.exists() else []
        _run("train-reward", config, *(overrides or ()), *settings, "--output", folder, *resume)

    def extrapolate(weak: Path, strong: Path, seed: int, folder: Path) -> None:
        final = folder / "final"
        if not final.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _run("extrapolate", weak / "final", strong / "final", f"--factor={factor}", "--output", final)
        row = load_config(config, RewardConfig, [*(overrides or ()), f"seed={seed}"], folder)
        paper_table.judge(row, final, folder)

    chosen = list(range(seeds))
    paper_table.train_table(told.output, chosen, train=train, extrapolate=extrapolate, say=typer.echo)
    summary = paper_table.summarise(*paper_table.correct_RSP(told.output, chosen), chosen)
    page = paper_table.write(told.output, {**summary, "factor": factor})
    show(paper_table.tables(summary))
    typer.echo("\n".join(paper_table.lead(summary)))
    typer.echo(f"Report: {page}; the same as table.md, table.json and table.svg beside it.")


def _run(*words: object) -> None:
    """One of our commands as a process of its own: it gives all its memory back, and does what it does when typed.

    Raises:
        RunError: it failed.
    """
    command = [str(word) for word in words]
    code = subprocess.run([sys.executable, "-m", "rlhf.cli", *command], check=False).returncode
    if code:
        raise RunError(f"`rlhf {' '.join(command)}` ended with exit code {code}.", fix="its message is above")


def show(tables: Sequence[Sequence[Sequence[str]]]) -> None:
    """Tables of cells, on the terminal."""
    for head, *rows in tables:
        table = Table()
        for number, name in enumerate(head):
            table.add_column(name, justify="right" if number else "left")
        for cells in rows:
            table.add_row(*cells)
        Console().print(table)
