"""`rlhf evaluate-reward`: how well a reward model tells good answers from bad ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from reward.evaluation.benchmark import TOLERANCE, evaluate
from reward.evaluation.choices import evaluate_best_of_n, evaluate_choices
from reward.evaluation.judging import write_result
from reward.evaluation.rewardbench_2 import evaluate_rewardbench_2
from reward.evaluation.rm_bench import evaluate_rm_bench
from rlhf.commands.judged import print_result
from rlhf.commands.options import Form, Label, TokensPerBatch
from rlhf.commands.output import require_output_file
from rlhf.data.benchmarks import Kind, load_benchmark
from rlhf.runs.progress import Progress

Data = Annotated[
    str,
    typer.Option(
        metavar="FILE",
        help="`demo` (synthetic, made by this project), `rewardbench`, `rewardbench-2`, `rm-bench`, `judgebench`, "
        "`ppe`, `ppe-math` and its like, `m-rewardbench/LANGUAGE` (from the hub), or a file (.jsonl, .json, .parquet, .csv, "
        "also .gz and .zst) in one of the forms above.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write the result here as JSON, and the rewards of each row beside it: eval.json, eval_rows.jsonl.",
    ),
]
Tolerance = Annotated[
    float,
    typer.Option(
        min=0.0, help="How far scores may move with their batch, as a share of max(1, largest score)."
    ),
]

JUDGES: Mapping[Kind, tuple[str, Callable[..., Any]]] = {
    "pairs": ("pairs", evaluate),
    "rm-bench": ("items", evaluate_rm_bench),
    "rewardbench-2": ("rows", evaluate_rewardbench_2),
    "one-of-many": ("rows", evaluate_choices),
    "best-of-n": ("rows", evaluate_best_of_n),
}
"""By the kind of benchmark: what one line is called, and who judges it."""


def evaluate_reward(
    model: Annotated[
        str,
        typer.Argument(
            help="A reward model: the `final` folder of a `train-reward` run, or another's (see --form)."
        ),
    ],
    data: Data = "demo",
    output: Output = None,
    tolerance: Tolerance = TOLERANCE,
    form: Form = "auto",
    label: Label = None,
    tokens_per_batch: TokensPerBatch = None,
) -> None:
    """Measure a reward model: on pairs of answers, by style, or by what it picks out of many.

    The columns of the first row say what a file is; `prompt` is a string or a list of messages:

    - Pairs: chosen, rejected and, on every row or on none, subset and section. Gives accuracy by subset, section and
    overall beside the baseline that always prefers the longer answer; by strength of the preference (where a row has a
    strength or preference_strength of 1 to 3) and by length; calibration; where the rewards lie.

    - RM-Bench: chosen and rejected are lists of three styles, and domain. Gives easy, normal and hard, and the matrix.

    - RewardBench 2: id, chosen and rejected as lists, and one of its subsets, by its own rules for ties.

    - One of many: chosen and rejected are lists, and subset. Right where the best right answer beats every wrong one.

    - JudgeBench (question, response_A, response_B, label, source), PPE (response_1, response_2, winner; or response_1 to
    response_32 and scores) and M-RewardBench as they are published.

    - Best of n: responses and their true scores, two lists. Gives the mean true score of the model's pick out of 1, 2, 4,
    ... answers, beside a random pick and the best there is.

    A tie counts as wrong. Answers longer than the model can take are left out with their row and counted. Scores that
    change with the batch, or are no numbers, are an error.

    Example: rlhf evaluate-reward runs/demo/reward/final --data rewardbench --output eval.json
    """
    from reward.load_scorer import load_scorer  # torch loads only when the command runs

    if output is not None:
        require_output_file(output)
    benchmark = load_benchmark(data)
    drops = benchmark.drops
    unit, judge = JUDGES[benchmark.kind]
    scorer = load_scorer(model, form=form, label=label, tokens_per_batch=tokens_per_batch)
    with Progress(len(benchmark.items), unit) as progress:
        result, rows = judge(
            benchmark.items, scorer, drops=drops, tolerance=tolerance, on_progress=progress.update
        )
    result = {"model": model, "data": data, "kind": benchmark.kind, **result, "drops": drops.as_dict()}
    console = Console(highlight=False)
    print_result(benchmark.kind, result, console)
    for line in drops.lines():
        console.print(line, markup=False, soft_wrap=True)
    if output is not None:
        beside = write_result(output, result, rows)
        console.print(f"Wrote {output} and {beside}.", markup=False, soft_wrap=True)
