"""Packed micro-batches of prompts with their answers, and the forward passes over them.

Shapes: N answers of a micro-batch, M their tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf.core.records import Rollout
from rlhf.kernels.inputs import packed_inputs
from rlhf.kernels.packed_batch import PackedBatch
from rlhf.kernels.packing import Tree, pack
from rlhf.models.loading import PeftModel, autocast, base_of, reference_role
from rlhf.models.names import CRITIC
from rlhf.models.roles import role


@dataclass(frozen=True)
class MicroBatch:
    """One packed row of whole groups: a forward and a backward pass of an update."""

    packed: PackedBatch
    answers: list[int]
    """Positions in the update's flat list of answers, in the order of the packed row."""
    rollouts: list[Rollout]


def answer_tree(group: Sequence[Rollout]) -> Tree:
    """A prompt and its answers as a tree.

    The trunk ends one token early, so that each branch predicts its first token.
    """
    prompt = group[0].prompt_ids
    return Tree(prompt[:-1], tuple((prompt[-1], *rollout.completion_ids) for rollout in group))


def pack_groups(
    groups: Sequence[Sequence[Rollout]],
    budget: int,
    pad_id: int,
    device: torch.device | str = "cpu",
    *,
    one_per_row: bool = False,
) -> list[MicroBatch]:
    """Pack groups into micro-batches on a device; a group is never split.

    Args:
        budget: tokens of a micro-batch; a longer group has a micro-batch of its own.
        one_per_row: no two answers share a row, see `rlhf.kernels.packing_check`.
    """
    offsets = [0]
    for group in groups:
        offsets.append(offsets[-1] + len(group))
    flat = [rollout for group in groups for rollout in group]
    trees = [answer_tree(group) for group in groups]
    micro_batches = []
    for packed in pack(trees, budget, pad_id=pad_id, one_per_row=one_per_row):
        answers = [
            position for index in packed.trees for position in range(offsets[index], offsets[index + 1])
        ]
        rollouts = [flat[position] for position in answers]
        micro_batches.append(MicroBatch(packed.to(device), answers, rollouts))
    return micro_batches


def token_logps(model: Any, packed: PackedBatch, *, entropy: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of the answers' tokens: (logps_M, entropy_M, answer_M); without `entropy` entropy_M
    is zeros.

    They are of the distribution that was sampled, at the temperature passed to `enable_packed_logprobs`.
    """
    following = packed.next_tokens
    logps_M, entropy_M = model(
        **packed_inputs(packed), predict=(*following.index, following.ids_M), entropy=entropy
    )
    return logps_M, entropy_M, following.branch_M


def token_values(model: Any, packed: PackedBatch) -> Tensor:
    """values_M: the value before each token of the answers in a packed row, with the critic's adapter active.

    Read at the preceding token, as log-probabilities are.
    """
    values_M: Tensor = model(**packed_inputs(packed), value_at=packed.next_tokens.index)
    return values_M


def reference_logps(model: Any, unwrapped: PeftModel | PreTrainedModel, micro_batch: MicroBatch) -> Tensor:
    """logps_M of the reference: a role on the policy's base, or a frozen copy of the base.

    Args:
        model: the model to call, as accelerate wrapped it for several processes.
        unwrapped: the same without the wrapping, whose roles are switched.
    """
    # accelerate puts autocast around the passes of a model that it prepared; a frozen copy needs it here.
    with torch.no_grad(), role(unwrapped, reference_role(unwrapped)), autocast(base_of(unwrapped)):
        return token_logps(model, micro_batch.packed, entropy=False)[0]


def measuring_passes(
    model: Any, unwrapped: PeftModel, micro_batch: MicroBatch
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Passes without gradients before the first loss: (logps_M, reference_M, entropy_M, answer_M, values_M).

    For algorithms with a critic; the others measure in the pass that is differentiated.

    Args:
        model, unwrapped: as of `reference_logps`.
    """
    with torch.no_grad():
        logps_M, entropy_M, answer_M = token_logps(model, micro_batch.packed)
        with role(unwrapped, CRITIC):
            values_M = token_values(model, micro_batch.packed)
    return logps_M, reference_logps(model, unwrapped, micro_batch), entropy_M, answer_M, values_M


def dummy_passes(
    model: Any,
    unwrapped: PeftModel | PreTrainedModel,
    micro_batch: MicroBatch,
    backward: Callable[[Tensor], None],
    *,
    reference: tuple[Any, PeftModel | PreTrainedModel] | None,
    has_critic: bool,
) -> None:
    """Forward and backward passes with a loss of 0: every rank must make all passes of a sharded model.

    Args:
        model, unwrapped: as of `reference_logps`.
        reference: the arguments of `reference_logps`, where the reference's pass is part of the epoch.
    """
    logps_M, _, _ = token_logps(model, micro_batch.packed)
    if reference is not None:
        reference_logps(*reference, micro_batch)
    backward(0.0 * logps_M.sum())
    if has_critic:
        with role(unwrapped, CRITIC):
            backward(0.0 * token_values(model, micro_batch.packed).sum())
