"""`rlhf paper-table`: trains all rows of the paper's reward table on any data and base."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from rlhf.config.load import load_config
from rlhf.config.reward import RewardConfig
from rlhf.core.errors import ConfigError, RunError
from rlhf.terminal.options import Config, Output, Overrides


def command(
    config: Config,
    overrides: Overrides = None,
    output: Output = None,
    justifier: Annotated[
        Path | None,
        typer.Option(
            help="A config of `train-justifier` on the same pairs; adds the row of the Pairwise Justifier.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds per row: 0, 1, ...")] = 3,
    factor: Annotated[
        float, typer.Option(help="ExPO's factor, which is not searched; 1.52 is the paper's.")
    ] = 1.52,
) -> None:
    """Train and compare all rows of the paper's reward table on the same data.

    Regression on all attributes and on helpfulness, Bradley-Terry in three forms, from scratch and from the
    helpfulness model, ExPO, and both losses at once, judged on the same held-out pairs (see data.test_share).
    With --justifier also the Pairwise Justifier; test prompts are left out of its training.
    The config's stages are named `regression` and `preference`; each row uses those it needs. The same
    command resumes an interrupted table. Writes RUN/report.html, and table.md, table.json and table.svg
    beside it.

    \b
    Example:
      rlhf paper-table configs/reward/paper-table.yaml --seeds 3 --output runs/paper-table
      rlhf paper-table configs/reward/paper-table-demo.yaml --justifier configs/justifier/demo.yaml
    """
    settings = load_config(config, RewardConfig, overrides or (), output)
    if not settings.data.test_share:
        raise ConfigError(
            "data.test_share is 0, so the figures would be taken on the pairs that chose the checkpoints.",
            allowed="a share in 0..1",
            fix="data.test_share=0.2",
        )
    from reward.evaluation import paper_table  # torch loads only when the command runs

    def train(name: str, seed: int, folder: Path, start: Path | None) -> None:
        run_overrides = [f"recipe={name}", f"seed={seed}", *([f"start={start}"] if start else [])]
        resume = ["--resume"] if folder.exists() else []
        run_command("train-reward", config, *(overrides or ()), *run_overrides, "--output", folder, *resume)

    def extrapolate(weak: Path, strong: Path, seed: int, folder: Path) -> None:
        final = folder / "final"
        if not final.exists():
            folder.mkdir(parents=True, exist_ok=True)
            run_command(
                "extrapolate", weak / "final", strong / "final", f"--factor={factor}", "--output", final
            )
        row = load_config(config, RewardConfig, [*(overrides or ()), f"seed={seed}"], folder)
        paper_table.judge(row, final, folder)

    def justify(seed: int, folder: Path) -> None:
        training = folder / "training"
        if not (training / "final").exists():
            shares = [f"data.test_share={settings.data.test_share}", "data.validation_share=0"]
            resume = ["--resume"] if training.exists() else []
            run_command("train-justifier", justifier, *shares, f"seed={seed}", "--output", training, *resume)
        row = load_config(config, RewardConfig, [*(overrides or ()), f"seed={seed}"], folder)
        paper_table.judge_justifier(row, training / "final", folder)

    chosen = list(range(seeds))
    paper_table.train_table(
        settings.output,
        chosen,
        train=train,
        extrapolate=extrapolate,
        justify=justify if justifier else None,
        say=typer.echo,
    )
    names = list(paper_table.ROWS_WITH_JUSTIFIER if justifier else paper_table.ROWS)
    right_RSP, longer, prompts_P = paper_table.correct_RSP(settings.output, chosen, names)
    summary = paper_table.summarise(right_RSP, longer, prompts_P, chosen, names)
    page = paper_table.write(settings.output, {**summary, "factor": factor})
    show(paper_table.tables(summary))
    typer.echo("\n".join(paper_table.lead(summary)))
    typer.echo(f"Report: {page}; the same as table.md, table.json and table.svg beside it.")


def run_command(*words: object) -> None:
    """Run a command of rlhf in a separate process, which frees all its memory.

    Raises:
        RunError: the command failed.
    """
    command = [str(word) for word in words]
    code = wait_for(subprocess.Popen([sys.executable, "-m", "rlhf.cli", *command]))
    if code:
        raise RunError(
            f"`rlhf {' '.join(command)}` ended with exit code {code}.", fix="see its message above"
        )


def wait_for(process: subprocess.Popen[bytes]) -> int:
    """The exit code of a process. If this one is interrupted, the other is terminated and waited for: a
    training finishes its update and saves it, which `subprocess.run` would not let it do."""
    try:
        return process.wait()
    except BaseException:  # Ctrl-C, which the other has received too, or SIGTERM
        process.terminate()
        process.wait()
        raise


def show(tables: Sequence[Sequence[Sequence[str]]]) -> None:
    """Print tables of cells."""
    for head, *rows in tables:
        table = Table()
        for number, name in enumerate(head):
            table.add_column(name, justify="right" if number else "left")
        for cells in rows:
            table.add_row(*cells)
        Console().print(table)
