"""The verdicts of a justifier on pairs of which the better response is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reward.evaluation.benchmarks.benchmark import evaluate
from reward.evaluation.judge_scorer import JudgeScorer
from reward.justifier.judge import load_justifier
from rlhf.core.errors import DataError
from rlhf.core.records import Comparison
from rlhf.data.drops import DropReport
from rlhf.runs.progress import Progress


def judge_pairs(folder: Path, pairs: Sequence[Comparison]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Judge pairs in both orders, as `rlhf evaluate-reward` does.

    Returns:
        The result and the rows of `evaluate` for the pairs that could be read, with `judge`, the figures of
        `JudgeScorer`, and `drops`. Only these two, and no rows, where no text could be read.

    Raises:
        DataError: a pair is too long for the base.
    """
    scorer = JudgeScorer(load_justifier(folder))
    drops = DropReport(read=len(pairs))
    result, rows = dict[str, Any](), list[dict[str, Any]]()
    try:
        with Progress(len(pairs), "pair") as progress:
            result, rows = evaluate(pairs, scorer, drops=drops, on_progress=progress.update)
    except DataError:
        if sum(drops.reasons.values()) < len(pairs):
            raise  # another reason than texts without a verdict
    return {**result, "judge": dict(scorer.figures()), "drops": drops.as_dict()}, rows
