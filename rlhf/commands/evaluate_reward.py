"""`rlhf evaluate-reward`: how well a reward model or a judge tells good answers from bad ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from reward.evaluation.benchmarks.suite import EVALUATORS, evaluate_suite
from reward.evaluation.judge_scorer import JudgeScorer
from reward.evaluation.judging import CHUNK, Scorers, write_result
from reward.evaluation.self_check import TOLERANCE
from reward.judge.client import JudgeClient
from reward.judge.forms import JUSTIFIER
from reward.judge.judge import Judge
from rlhf.config.judge import JudgeConfig
from rlhf.config.load import load_config
from rlhf.core.errors import ConfigError, DataError, RunError
from rlhf.data.evaluation.benchmarks import load_benchmark
from rlhf.data.evaluation.suite import suite_members
from rlhf.data.sources.rows import DEMO
from rlhf.runs.files import atomic_write_text
from rlhf.runs.progress import Progress
from rlhf.terminal.benchmarks import print_result, print_suite
from rlhf.terminal.options import Form, Label, TokensPerBatch
from rlhf.terminal.output import require_output_file

Data = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="`demo` (the default: synthetic, part of this project), `rewardbench`, `rewardbench-2`, "
        "`rm-bench`, `judgebench`, `ppe`, `ppe-math` and its like, `m-rewardbench/LANGUAGE` (from the "
        "hub), or a file (.jsonl, .json, .parquet, .csv, also .gz and .zst) in one of the forms above.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write the result here as JSON, and the rewards of each row beside it: eval.json, "
        "eval_rows.jsonl.",
    ),
]
Tolerance = Annotated[
    float,
    typer.Option(
        min=0.0,
        help="Tolerance of the self-check: how far a score may change with its batch, relative to "
        "max(1, largest score).",
    ),
]

Suite = Annotated[
    bool,
    typer.Option(
        "--suite",
        help="Run all benchmarks in the folder --data, or without --data those on the Hub, and print one "
        "table.",
    ),
]
JudgeFile = Annotated[
    Path | None,
    typer.Option(
        "--judge",
        metavar="JUDGE.yaml",
        help="Evaluate a language model behind an OpenAI-compatible server in place of MODEL; the file has "
        "the keys of "
        "`reward: {judge: ...}`.",
    ),
]


def evaluate_reward(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A reward model: the `final` folder of a `train-reward` run, or another's (see --form)."
        ),
    ] = None,
    data: Data = None,
    suite: Suite = False,
    judge: JudgeFile = None,
    output: Output = None,
    tolerance: Tolerance = TOLERANCE,
    form: Form = "auto",
    label: Label = None,
    tokens_per_batch: TokensPerBatch = None,
) -> None:
    """Evaluate a reward model on pairs of answers, on styles, or on its choice among many answers.

    The columns of the first row determine the kind of benchmark; `prompt` is a string or a list of messages:

    - Pairs: chosen, rejected and, on every row or on none, subset and section. Gives accuracy by subset,
    section and overall beside the baseline that always prefers the longer answer; by strength of the
    preference (where a row has a strength or preference_strength of 1 to 3) and by length; calibration; the
    distribution of rewards.

    - RM-Bench: chosen and rejected are lists of three styles, and domain. Gives easy, normal and hard, and
    the matrix.

    - RewardBench 2: id, chosen and rejected as lists, and one of its subsets, by its own rules for ties.

    - One of many: chosen and rejected are lists, and subset. Correct if the best right answer scores above
    every wrong one.

    - JudgeBench (question, response_A, response_B, label, source), PPE (response_1, response_2, winner; or
    response_1 to response_32 and scores) and M-RewardBench as they are published.

    - Best of n: responses and their true scores, two lists. Gives the mean true score of the model's choice
    out of 1, 2, 4, ... answers, beside a random choice and the best possible.

    With --suite all available benchmarks are run and printed in one table, with published scores. With
    --judge a language model is evaluated: it sees each pair in both orders, each counts +1 or -1, and the sum
    decides; texts without a verdict are counted and dropped; position bias and the agreement of the orders
    are reported.

    A tie counts as wrong. Rows with answers longer than the model's context are dropped and counted. Scores
    that change with the batch, or are not finite, are an error.

    \b
    Examples:
      rlhf evaluate-reward runs/demo/reward/final --data rewardbench --output eval.json
      rlhf evaluate-reward runs/demo/reward/final --suite --data benchmarks/ --output suite.json
      rlhf evaluate-reward --judge configs/judge/vllm.yaml --data judgebench
    """
    if output is not None:
        require_output_file(output)
    load, chunk = _scorer(model, judge, output, form, label, tokens_per_batch)
    console = Console(highlight=False)
    described = {"model": model} if judge is None else {"judge_file": str(judge)}
    if suite:
        _run_suite(load, chunk, described, data, tolerance, output, console)
        return
    data = data or DEMO
    benchmark = load_benchmark(data)
    drops = benchmark.drops
    unit, evaluator = EVALUATORS[benchmark.kind]
    scorer = load()
    with Progress(len(benchmark.items), unit) as progress:
        result, rows = evaluator(
            benchmark.items,
            scorer,
            drops=drops,
            tolerance=tolerance,
            chunk=chunk,
            on_progress=progress.update,
        )
    figures = {"judge": dict(scorer.figures())} if isinstance(scorer, JudgeScorer) else {}
    result = {
        **described,
        "data": data,
        "kind": benchmark.kind,
        **result,
        "notes": [*benchmark.notes, *result["notes"]],
        **figures,
        "drops": drops.as_dict(),
    }
    print_result(benchmark.kind, result, console)
    for line in drops.lines():
        console.print(line, markup=False, soft_wrap=True)
    if output is not None:
        beside = write_result(output, result, rows)
        console.print(f"Wrote {output} and {beside}.", markup=False, soft_wrap=True)


def _scorer(
    model: str | None,
    judge: Path | None,
    output: Path | None,
    form: str,
    label: str | None,
    tokens_per_batch: int | None,
) -> tuple[Callable[[], Scorers], int]:
    """A function that loads the reward model or the judge, and the number of groups scored at a time.

    Raises:
        UserError: not exactly one of MODEL and --judge, or the judge cannot be used.
    """
    if (model is None) == (judge is None):
        raise ConfigError(
            "Neither MODEL nor --judge was passed."
            if model is None
            else f"Both {model} and --judge were passed.",
            allowed="one of them",
            fix="rlhf evaluate-reward MODEL, or rlhf evaluate-reward --judge JUDGE.yaml",
        )
    if judge is not None:
        config = load_config(judge, JudgeConfig)
        cache = None if output is None else output.with_name(f"{output.stem}_judge.jsonl")
        JudgeClient(config).check()
        server = Judge(config, cache)
        return lambda: JudgeScorer(server), max(CHUNK, config.concurrency)

    def load() -> Scorers:
        from reward.load_scorer import load_scorer  # torch loads only when a model is needed

        assert model is not None
        if form == JUSTIFIER:
            from reward.justifier.judge import load_justifier

            return JudgeScorer(load_justifier(Path(model), tokens_per_batch=tokens_per_batch))
        return load_scorer(model, form=form, label=label, tokens_per_batch=tokens_per_batch)

    return load, CHUNK


def _run_suite(
    load: Callable[[], Scorers],
    chunk: int,
    described: Mapping[str, str | None],
    folder: str | None,
    tolerance: float,
    output: Path | None,
    console: Console,
) -> None:
    """Evaluate all benchmarks at hand, print the table and write one JSON file.

    Raises:
        DataError: no benchmark could be read.
        RunError: the model's scores could not be used on one of them; the others are in the table and the
            file.
    """
    members, missing = suite_members(folder)
    scorer = load()

    @contextmanager
    def watch(name: str, count: int, unit: str) -> Iterator[Callable[[int], None]]:
        console.print(f"Scoring {name}.", markup=False)
        with Progress(count, unit) as progress:
            yield progress.update

    judged = scorer if isinstance(scorer, JudgeScorer) else None
    results, unread, failed = evaluate_suite(
        members,
        scorer,
        tolerance=tolerance,
        chunk=chunk,
        watch=watch,
        started=judged.start if judged else lambda: None,
        finished=(lambda: {"judge": dict(judged.figures())}) if judged else dict,
    )
    missing = {**unread, **missing}
    suite = {**described, "data": folder, "benchmarks": results, "missing": missing}
    if not results and not failed:
        raise DataError(
            f"No benchmark could be read: {next(iter(missing.values()), 'there is none')}",
            allowed="files in the published schemas in the folder --data, or the Hub",
            fix="download one: hf download allenai/reward-bench-2 --repo-type dataset --local-dir "
            "benchmarks/rewardbench-2",
        )
    print_suite(suite, console)
    if output is not None:
        atomic_write_text(output, json.dumps(suite, ensure_ascii=False, indent=2, allow_nan=False) + "\n")
        console.print(f"Wrote {output}.", markup=False, soft_wrap=True)
    if failed:
        raise RunError(
            "\n".join(f"{name}: {unread[name]}" for name in failed), fix="see the message of each benchmark"
        )
