"""`rlhf search`: the best values of some config keys, by trying them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from rlhf.commands.options import Overrides, explain_option
from rlhf.config.load import load_config
from rlhf.config.search import SearchConfig
from rlhf.core.errors import RunError

INTERRUPTED = 130


def command(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The search's config file.")],
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The search's folder; wins over `output` in the config."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Check everything, show space and state and the next trial, and stop."
        ),
    ] = False,
    _explain: Annotated[bool, explain_option(SearchConfig)] = False,
) -> None:
    """Search for good values of config keys.

    Runs `train-reward` or `align-policy` again and again, each time with other values, proposed by what the
    trials before reached (TPE, by Optuna); hopeless trials are stopped early. Leaves a table, a picture and
    the command to train with the best values. Stopped or killed, the same command goes on. More of these
    processes, here or on other machines with the same `storage`, share the work; on a machine with several
    cards, give each its own by CUDA_VISIBLE_DEVICES. `--explain` lists every key of the config.

    \b
    Example:
      rlhf search configs/search/reward.yaml trials=30 --output runs/search
    """
    told = load_config(config, SearchConfig, overrides or (), output)
    from rlhf.search.plan import plan
    from rlhf.search.run import run_search

    console = Console(highlight=False)

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    if dry_run:
        for line in plan(told, config):
            say(line)
        return
    try:
        results = run_search(told, config, say)
    except KeyboardInterrupt:
        words = shlex.join(["rlhf", "search", str(config), *(overrides or ())])
        where = f" --output {shlex.quote(str(output))}" if output else ""
        typer.echo(f"Interrupted: the trial stays open. To go on: {words}{where}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    say_results(told, results, console)


def say_results(told: SearchConfig, results: dict[str, Any], console: Console) -> None:
    """Table, counts, the command to train with the best values, and the page.

    Raises:
        RunError: every trial failed.
    """
    from rlhf.search.page import write_page
    from rlhf.search.results import best_table, summary

    lines = summary(results)
    if results["best"] is not None:
        console.print(best_table(results))
        note = ", the search's own overrides included: leave out those that only made trials short"
        lines += [f"To train with the best values{note if told.overrides else ''}:", results["train"]]
    for line in [*lines, f"Report: {write_page(told.output)}"]:
        console.print(line, markup=False, soft_wrap=True)
    if {trial["state"] for trial in results["trials"]} == {"failed"}:
        raise RunError(
            f"all {len(results['trials'])} trials failed", fix=f"read the logs in {told.output / 'trials'}"
        )
