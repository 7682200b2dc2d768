"""`rlhf evaluate-reward`: how often a reward model prefers the better of two answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from reward.benchmark import TOLERANCE, evaluate
from rlhf.commands.output import require_output_file
from rlhf.core.progress import Progress
from rlhf.core.runs import atomic_write_text
from rlhf.data.load import load_comparisons

_RULES = {
    "rewardbench": "RewardBench v1: sections weighted by its example counts, overall = mean of the four",
    "sections": "section = mean over its pairs, overall = mean of the sections",
    "pairs": "overall = mean over all pairs (the rows name no section)",
}


def evaluate_reward(
    model: Annotated[str, typer.Argument(help="A reward model: the `final` folder of a `train-reward` run.")],
    data: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="`demo` (synthetic, made by this project), `rewardbench` (allenai/reward-bench from the hub), "
            "or a file (.jsonl, also .gz) with the columns prompt (string or messages), chosen, rejected, "
            "subset and, on every row or on none, section.",
        ),
    ] = "demo",
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the result here as JSON, and each pair's rewards beside it: eval.json, eval_rows.jsonl.",
        ),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(
            min=0.0, help="How far scores may move with their batch, as a share of max(1, largest score)."
        ),
    ] = TOLERANCE,
) -> None:
    """Measure a reward model on pairs of a better and a worse answer.

    Prints accuracy by subset with a 95 % interval, beside the baseline that always prefers the longer answer,
    then sections and overall. A tie counts as wrong. A pair longer than the model was trained for is left out
    and counted. Scores that change with the batch are an error.

    Example: rlhf evaluate-reward runs/demo/reward/final --data rewardbench --output eval.json
    """
    from reward.scorer import Scorer  # torch loads only when the command runs

    if output is not None:
        require_output_file(output)
    comparisons, drops = load_comparisons(data)
    scorer = Scorer.load(model)
    with Progress(len(comparisons), "pairs") as progress:
        result, rows = evaluate(
            comparisons, scorer, drops=drops, tolerance=tolerance, on_progress=progress.update
        )
    result = {"model": model, "data": data, **result, "drops": drops.as_dict()}
    console = Console(highlight=False)
    print_result(result, console)
    for line in drops.lines():
        console.print(line, markup=False, soft_wrap=True)
    if output is not None:
        rows_path = output.with_name(f"{output.stem}_rows.jsonl")
        atomic_write_text(rows_path, "".join(json.dumps(row) + "\n" for row in rows))
        atomic_write_text(output, json.dumps(result, indent=2, allow_nan=False) + "\n")
        console.print(f"Wrote {output} and {rows_path}.", markup=False, soft_wrap=True)


def print_result(result: Mapping[str, Any], console: Console) -> None:
    """Prints what `reward.benchmark.evaluate` found: subsets, sections, overall, and what to be wary of."""
    table = Table(title="Accuracy in %, ties wrong", title_justify="left")
    table.add_column("subset")
    for header in ("pairs", "accuracy", "95 % interval", "longer answer"):
        table.add_column(header, justify="right")
    for name, subset in result["subsets"].items():
        baseline = _percent(subset["length_baseline"])
        table.add_row(
            name, str(subset["count"]), _percent(subset["accuracy"]), _interval(subset["ci95"]), baseline
        )
    intervals = result["intervals"]
    for i, (name, accuracy) in enumerate(result["sections"].items()):
        if i == 0:
            table.add_section()
        table.add_row(f"Section {name}", "", _percent(accuracy), _interval(intervals["sections"][name]), "")
    table.add_section()
    table.add_row(
        "Overall",
        str(result["count"]),
        _percent(result["overall"]),
        _interval(intervals["overall"]),
        _percent(result["length_baseline"]),
    )
    console.print(table)
    console.print(f"Rule: {_RULES[result['aggregation']]}.", markup=False)
    if ties := sum(subset["ties"] for subset in result["subsets"].values()):
        console.print(f"{ties} of {result['count']} pairs are ties, counted as wrong.", markup=False)
    correlation = result["length_correlation"]
    shown = "not defined" if correlation is None else f"{correlation:+.2f}"
    check = result["self_check"]
    console.print(
        f"Correlation of reward and length within pairs: {shown}. Self-check: {check['count']} scores change by "
        f"up to {check['largest_difference']:.2g} with the batch (allowed: {check['tolerance']:g}).",
        markup=False,
        soft_wrap=True,
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _interval(bounds: list[float]) -> str:
    return f"{_percent(bounds[0])} - {_percent(bounds[1])}"
