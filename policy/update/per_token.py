"""Figures of single tokens, stored for a few answers of an update."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from rlhf.core.records import Rollout

SHOWN = 4
"""Answers of an update whose tokens are stored."""


def shown_answers(rewards: Sequence[float]) -> set[int]:
    """Positions of at most `SHOWN` answers, evenly from the lowest to the highest reward; NaN is left out."""
    known = [position for position, reward in enumerate(rewards) if not math.isnan(reward)]
    known.sort(key=lambda position: rewards[position])
    count = min(SHOWN, len(known))
    return {known[round(i * (len(known) - 1) / max(1, count - 1))] for i in range(count)}


def with_tokens(
    rows: Sequence[Mapping[str, Any]],
    rollouts: Sequence[Rollout],
    tokens: Sequence[Mapping[str, Tensor]],
    pieces: Callable[[Sequence[int]], list[str]],
) -> list[Mapping[str, Any]]:
    """Rows of samples.jsonl; a few have `tokens`, the text of each token, and its figures, to four digits.

    Figures that are not finite are left out.

    Args:
        rows: one per answer, each with its `reward`.
        tokens: figures of each answer's tokens by name, see `UpdateStatistics`.
        pieces: the text of each token id.
    """
    shown = shown_answers([row["reward"] for row in rows])
    return [
        {**row, "tokens": pieces(rollouts[position].completion_ids), **_figures(tokens[position])}
        if position in shown
        else row
        for position, row in enumerate(rows)
    ]


def _figures(tokens: Mapping[str, Tensor]) -> dict[str, list[float]]:
    return {
        name: [float(f"{value:.4g}") for value in values.tolist()]
        for name, values in tokens.items()
        if values.isfinite().all()
    }
