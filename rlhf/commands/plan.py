"""`rlhf plan`: estimates GPUs, memory, time and cost of a config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rlhf.core.errors import ConfigError, OutputError
from rlhf.terminal.options import Config, Overrides
from rlhf.terminal.output import require_output_file


def command(
    config: Config,
    overrides: Overrides = None,
    gpus: Annotated[
        str,
        typer.Option(
            metavar="GPUS",
            help="8xH100-80GB, 4x8xH200 (machines x GPUs), or plain sizes: 2x24GB, 1x48GB.",
        ),
    ] = "1x80GB",
    rollout_gpus: Annotated[
        str | None,
        typer.Option(
            metavar="GPUS",
            help="GPUs of the vLLM servers, the same number for each of rollouts.servers (default: the "
            "fewest that fit).",
        ),
    ] = None,
    parallel: Annotated[
        str,
        typer.Option(metavar="HOW", help="auto (the first that fits), one, ddp, fsdp or fsdp-offload."),
    ] = "auto",
    host_memory: Annotated[
        float | None,
        typer.Option(
            min=1.0, metavar="GIB", help="Memory of each machine, compared with what loading takes."
        ),
    ] = None,
    utilisation: Annotated[
        str,
        typer.Option(metavar="SHARE", help="Model FLOPs utilisation of training: 0.3, or a range."),
    ] = "0.18-0.35",
    price: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="DOLLARS", help="Price per GPU-hour, in place of the built-in one."),
    ] = None,
    item_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Mean tokens of a pair or rated response.")
    ] = 1024,
    prompt_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Mean tokens of a prompt.")] = 256,
    answer_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Mean tokens of an answer.")] = 512,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the memory of each phase: .png or .svg.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON, in bytes.")] = False,
) -> None:
    """Estimate the GPUs, memory, time and cost of a config.

    Runs the real update once on fake tensors: no weights, no network, no GPU, under a minute. Prints the peak
    memory per GPU in each phase by kind, whether it fits, what to change if not, and time and cost with their
    assumptions. The config is one of `train-reward` or `align-policy`; the exit code is 0 whether it fits or
    not.

    \b
    Example:
      rlhf plan configs/reward/llama-3.1-8b.yaml --gpus 1x24GB
      rlhf plan configs/policy/llama-3.1-8b.yaml model.quantization=nf4 --gpus 8xH100-80GB --picture plan.png
    """
    if picture is not None:
        require_output_file(picture)
        if picture.suffix not in (".png", ".svg"):
            raise OutputError(f"--picture {picture}", allowed="a name that ends with .png or .svg")
    from rlhf.config.reading.either import load_either
    from rlhf.plan.gpus import GIB, parse_gpus  # checks its arguments before torch is loaded

    shares = _shares(utilisation)
    cluster = parse_gpus(gpus, price)
    servers = parse_gpus(rollout_gpus, price) if rollout_gpus else None
    settings = load_either(config, overrides or ())
    from rlhf.plan import report
    from rlhf.plan.estimate import make_plan
    from rlhf.plan.memory.phases import Tracer, check_shares, check_strategy, with_servers
    from rlhf.plan.memory.shapes import shape_of
    from rlhf.plan.request import Assumptions, Request, as_packed

    if parallel != "auto":
        check_strategy(parallel, cluster)
    check_shares(settings, cluster)
    tracer = Tracer(shape_of(settings))
    settings, reason = as_packed(settings, tracer.shape)
    if reason and not as_json:
        typer.echo(f"One sequence per row, as model.packing=false: {reason}.")
    start = "one" if cluster.count == 1 else "ddp"
    request = with_servers(
        Request(settings, cluster, start if parallel == "auto" else parallel, servers), tracer
    )
    assumed = Assumptions(shares, item_tokens, prompt_tokens, answer_tokens)
    host = None if host_memory is None else int(host_memory * GIB)
    plan = make_plan(request, tracer, assumed, choose=parallel == "auto", host=host)
    if picture is not None:
        report.draw(plan, picture)
    if as_json:
        typer.echo(json.dumps(report.as_json(plan), indent=2))
    else:
        report.show(plan, Console(highlight=False))
        if picture is not None:
            typer.echo(f"Picture: {picture}")


def _shares(text: str) -> tuple[float, float]:
    """A fraction of the peak as a range: `0.3`, `0.18-0.35`."""
    try:
        ends = [float(part) for part in text.split("-", 1)]
    except ValueError:
        ends = []
    if not ends or not 0 < ends[0] <= ends[-1] <= 1:
        raise ConfigError(
            f"--utilisation {text}.",
            allowed="a fraction above 0 and up to 1, or a range LOW-HIGH",
            fix="--utilisation 0.18-0.35",
        )
    return ends[0], ends[-1]
