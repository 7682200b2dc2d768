"""The KL of single tokens, stored for a few answers of an update."""

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


def with_token_kl(
    rows: Sequence[Mapping[str, Any]],
    rollouts: Sequence[Rollout],
    log_ratios: Sequence[Tensor],
    pieces: Callable[[Sequence[int]], list[str]],
) -> list[Mapping[str, Any]]:
    """Rows of samples.jsonl; a few have `tokens` and `token_kl`, log(pi / reference) of each token in nats.

    Args:
        rows: one per answer, each with its `reward`.
        log_ratios: of each answer's tokens; their sum is the row's `kl`.
        pieces: the text of each token id.
    """
    shown = shown_answers([row["reward"] for row in rows])
    return [
        {
            **row,
            "tokens": pieces(rollouts[position].completion_ids),
            "token_kl": [round(value, 3) for value in log_ratios[position].tolist()],
        }
        if position in shown
        else row
        for position, row in enumerate(rows)
    ]
