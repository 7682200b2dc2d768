"""Evaluates a reward model or a judge on several benchmarks, each by its own rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from reward.evaluation.benchmarks.benchmark import evaluate
from reward.evaluation.benchmarks.choices import evaluate_best_of_n, evaluate_choices
from reward.evaluation.benchmarks.published import published
from reward.evaluation.benchmarks.rewardbench_2 import evaluate_rewardbench_2
from reward.evaluation.benchmarks.rm_bench import evaluate_rm_bench
from reward.evaluation.judging import CHUNK, Progressed, Scorers
from rlhf.core.errors import DataError, RlhfError
from rlhf.data.evaluation.benchmarks import BenchmarkKind, load_benchmark
from rlhf.data.evaluation.suite import Member

BenchmarkResult = dict[str, Any]
Rows = list[dict[str, Any]]

EVALUATORS: Mapping[BenchmarkKind, tuple[str, Callable[..., tuple[BenchmarkResult, Rows]]]] = {
    "pairs": ("pairs", evaluate),
    "rm-bench": ("items", evaluate_rm_bench),
    "rewardbench-2": ("rows", evaluate_rewardbench_2),
    "one-of-many": ("rows", evaluate_choices),
    "best-of-n": ("rows", evaluate_best_of_n),
}
"""By the kind of benchmark: what its items are called, and what evaluates them."""


class Headline(NamedTuple):
    """The main figure of a benchmark, its 95 % interval, and the same figure when length alone decides."""

    score: float
    interval: Sequence[float] | None
    longest: float | None
    shortest: float | None


def headline(kind: str, result: Mapping[str, Any]) -> Headline:
    """The overall score; of best-of-n the mean true score of the pick among all answers of each prompt."""
    if kind == "best-of-n":
        picks = result["best_of_all"]
        return Headline(picks["score"], picks["ci95"], picks.get("longest"), picks.get("shortest"))
    return Headline(
        result["overall"],
        result["intervals"]["overall"],
        result["length_baseline"],
        result["shortest_baseline"],
    )


Watch = Callable[[str, int, str], AbstractContextManager[Progressed]]
"""(name, items, what they are called) -> a context whose value is called with the number of items done."""


def evaluate_suite(
    members: Sequence[Member],
    scorer: Scorers,
    *,
    tolerance: float,
    watch: Watch,
    chunk: int = CHUNK,
    started: Callable[[], None] = lambda: None,
    finished: Callable[[], Mapping[str, Any]] = dict,
) -> tuple[BenchmarkResult, dict[str, str], list[str]]:
    """Evaluate every member; one that fails does not end the others.

    Args:
        started, finished: called around each benchmark; what `finished` returns is added to the benchmark's
            result.

    Returns:
        Results by name, each as its evaluator returns it with `kind`, `headline`, `published` and `drops`;
        the benchmarks that could not be read, with the reason; and those of `missing` whose evaluation failed
        (an unusable score).
    """
    results: BenchmarkResult = {}
    missing: dict[str, str] = {}
    failed: list[str] = []
    for member in members:
        started()
        try:
            benchmark = load_benchmark(member.path)
            unit, evaluator = EVALUATORS[benchmark.kind]
            with watch(member.name, len(benchmark.items), unit) as progressed:
                result, _ = evaluator(
                    benchmark.items,
                    scorer,
                    drops=benchmark.drops,
                    tolerance=tolerance,
                    chunk=chunk,
                    on_progress=progressed,
                )
        except DataError as error:
            missing[member.name] = error.found
            continue
        except RlhfError as error:
            missing[member.name] = error.found
            failed.append(member.name)
            continue
        results[member.name] = {
            "kind": benchmark.kind,
            "path": member.path,
            "headline": headline(benchmark.kind, result)._asdict(),
            **result,
            "notes": [*benchmark.notes, *result["notes"]],
            **finished(),
            "published": [row._asdict() for row in published(member.name)],
            "drops": benchmark.drops.as_dict(),
        }
    return results, missing, failed
