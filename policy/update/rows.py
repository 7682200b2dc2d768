"""Answers laid into packed rows, and their tokens' log-probabilities.

Shapes: M tokens of all answers of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf.core.records import Rollout
from rlhf.kernels.packing import PackedBatch, Tree, pack
from rlhf.models.forwards import packed_inputs


@dataclass(frozen=True)
class Row:
    """A packed row of whole groups, with what is needed to turn rewards into a loss."""

    packed: PackedBatch
    answers: list[int]
    """Places in the update's flat list of answers, in the row's order."""
    rollouts: list[Rollout]


def answer_tree(group: Sequence[Rollout]) -> Tree:
    """A prompt and its answers; the trunk ends one token early, so that each branch predicts its own first token."""
    prompt = group[0].prompt_ids
    return Tree(prompt[:-1], tuple((prompt[-1], *rollout.completion_ids) for rollout in group))


def pack_groups(
    groups: Sequence[Sequence[Rollout]],
    budget: int,
    pad_id: int,
    device: torch.device | str = "cpu",
    *,
    one_per_row: bool = False,
) -> list[Row]:
    """Groups laid into rows on a device; a group is never cut.

    Args:
        one_per_row: no two answers share a row, see `rlhf.kernels.packing_check`.
    """
    first = [0]
    for group in groups:
        first.append(first[-1] + len(group))
    flat = [rollout for group in groups for rollout in group]
    rows = []
    trees = [answer_tree(group) for group in groups]
    for packed in pack(trees, budget, pad_id=pad_id, one_per_row=one_per_row):
        answers = [place for index in packed.trees for place in range(first[index], first[index + 1])]
        rows.append(Row(packed.to(device), answers, [flat[place] for place in answers]))
    return rows


def token_logps(model: Any, packed: PackedBatch, *, entropy: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of the answers' tokens in a packed row: (logps_M, entropy_M, answer_M); without `entropy` it is zeros.

    At the temperature `enable_packed_logprobs` was given: log-probabilities of the distribution that was sampled.
    """
    following = packed.next_tokens
    logps_M, entropy_M = model(
        **packed_inputs(packed), predict=(*following.index, following.ids_M), entropy=entropy
    )
    return logps_M, entropy_M, following.branch_M
