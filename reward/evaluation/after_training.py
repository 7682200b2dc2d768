"""Evaluate the saved model at the end of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reward.evaluation.benchmarks.benchmark import evaluate
from reward.evaluation.judging import CHUNK
from reward.evaluation.self_check import ScorerLike
from reward.evaluation.sharded_scorer import ShardedScorer
from reward.scorer import Scorer
from reward.training.data import RewardData
from rlhf.config.reward import RewardConfig
from rlhf.core.records import Comparison
from rlhf.data.comparisons import load_comparisons
from rlhf.data.drops import DropReport
from rlhf.distributed import processes
from rlhf.runs.after import AfterTraining
from rlhf.runs.folder import RunFolder
from rlhf.runs.progress import Progress


def evaluate_final(
    config: RewardConfig, data: RewardData, run: RunFolder, steps: AfterTraining
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Score the benchmark and the held-out pairs (by source) with the saved model.

    A part that fails is reported to `steps` and left out of the result.
    """

    def load() -> ScorerLike:
        scorer = Scorer.load(run.final, tokens_per_batch=config.tokens_per_batch)
        return scorer if processes.world_size() == 1 else ShardedScorer(scorer)

    scorer = steps.run("loading final/", load, needs=run.final)
    if scorer is None:
        return {}, []
    chunk = CHUNK * processes.world_size()

    def judge(what: str, pairs: Sequence[Comparison], drops: DropReport | None) -> Any:
        print(f"Scoring {what}.")
        with Progress(len(pairs), "pair") as progress:
            result, rows = evaluate(
                pairs, scorer, drops=drops, on_progress=progress.update, chunk=chunk, strict=False
            )
        check = result["self_check"]
        if check.get("verdict") == "batch":
            steps.fail(f"the self-check on {what}", check["sentence"])
        return result, rows

    def benchmark(path: str) -> Any:
        comparisons, drops = load_comparisons(path)
        result, rows = judge("the benchmark", comparisons, drops)
        return {**result, "drops": drops.as_dict()}, rows

    held: tuple[dict[str, Any], list[dict[str, Any]]] = {}, []
    if data.held_out:
        name = "the held-out pairs"
        held = steps.run(name, lambda: judge(name, data.held_out, None)) or held
    if config.benchmark is None:
        return held
    path = config.benchmark
    result, rows = steps.run("the benchmark", lambda: benchmark(path)) or ({}, [])
    return ({**result, "held_out": held[0]} if result or held[0] else {}), [*rows, *held[1]]
