"""Lines of a benchmark that set both sides' memory and our time beside what `rlhf plan` predicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from measuring import line

from rlhf.plan.memory.phases import Tracer
from rlhf.plan.memory.shapes import shape_of
from rlhf.plan.request import Assumptions, row_of
from rlhf.plan.speed import percent

GIB = 2**30
TRAINING = ("scoring", "measuring", "update")
"""Passes of a policy's update; reward training has the last one."""
MOST_MEMORY = 0.6
"""The goal: peak memory beside TRL's."""


def plan_lines(
    config: Any, *, computed: int, gflops: float, seconds: float, peaks: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Peak memory of both sides and of the plan; our seconds and the plan's.

    Args:
        config: of our side, with its `tokens_per_batch`.
        computed: tokens that our side computes in `seconds`.
        gflops: of a large matrix product, in place of the data sheet's.
        peaks: bytes by side, weights included.
    """
    traced, row = Tracer(shape_of(config))(row_of(config)), row_of(config)
    passes = TRAINING if row.command == "align-policy" else ("update",)
    flops = sum(traced.flops[name] for name in passes) * computed / row.tokens
    planned = max(traced.peaks[name].total for name in passes)
    shares = Assumptions().utilisation
    slowest, fastest = (flops / (share * gflops * 1e9) for share in shares)
    return [
        line("Ours: peak memory", peaks["ours"] / GIB, "GiB"),
        line("TRL: peak memory", peaks["trl"] / GIB, "GiB"),
        line("Peak memory beside TRL", peaks["ours"] / peaks["trl"], "x", most=MOST_MEMORY),
        line("Plan: peak memory of ours", planned / GIB, "GiB", note=f"rows of {row.tokens} tokens"),
        line("Ours: time of these updates", seconds, "s"),
        line(
            "Plan: time of these updates",
            fastest,
            "s",
            note=f"{fastest:.2f} to {slowest:.2f} s at {percent(shares)} of the peak",
        ),
    ]
