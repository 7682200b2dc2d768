"""`rlhf search`: hyperparameter search over config keys."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from rlhf.config.load import load_config
from rlhf.config.search import SearchConfig
from rlhf.core.errors import RunError
from rlhf.terminal.options import Overrides, explain_option

INTERRUPTED = 130


def command(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The search's config file.")],
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The search's folder; overrides `output` in the config."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Check the config, print the space, the state and the next trial, and exit."
        ),
    ] = False,
    _explain: Annotated[bool, explain_option(SearchConfig)] = False,
) -> None:
    """Search for good values of config keys.

    Runs `train-reward` or `align-policy` with values proposed by Optuna's TPE sampler; unpromising trials are
    pruned. Writes a table, plots and the command to train with the best values. After an interruption or a
    kill the same command resumes the search. Several processes, on one or more machines with the same
    `storage`, share the trials; on a machine with several GPUs, set CUDA_VISIBLE_DEVICES for each.
    `--explain` lists every key of the config.

    \b
    Example:
      rlhf search configs/search/reward.yaml trials=30 --output runs/search
    """
    settings = load_config(config, SearchConfig, overrides or (), output)
    from rlhf.search.run import plan, run_search

    console = Console(highlight=False)

    def print_line(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    if dry_run:
        for line in plan(settings, config):
            print_line(line)
        return
    # SIGTERM and SIGHUP are treated like Ctrl-C: the trial is stopped and stays open.
    signals = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in signals]
    try:
        results = run_search(settings, config, print_line)
    except KeyboardInterrupt:
        words = shlex.join(["rlhf", "search", str(config), *(overrides or ())])
        where = f" --output {shlex.quote(str(output))}" if output else ""
        typer.echo(f"Interrupted: the trial stays open. To resume: {words}{where}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
    print_results(settings, results, console)


def print_results(settings: SearchConfig, results: dict[str, Any], console: Console) -> None:
    """Print counts, the best trial, the command to train with the best values, and the path of the report.

    Raises:
        RunError: every trial failed.
    """
    from rlhf.search.results import summary, write_page

    lines = summary(results)
    if results["best"] is not None:
        note = ", with the search's overrides: remove those that only shorten trials"
        lines += [f"To train with the best values{note if settings.overrides else ''}:", results["train"]]
    for line in [*lines, f"Report: {write_page(settings.output)}"]:
        console.print(line, markup=False, soft_wrap=True)
    if {trial["state"] for trial in results["trials"]} == {"failed"}:
        raise RunError(
            f"all {len(results['trials'])} trials failed",
            fix=f"read the logs in {settings.output / 'trials'}",
        )
