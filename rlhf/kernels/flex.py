"""FlexAttention over packed rows: a BlockMask from the spans of a batch, built once per batch.

A block of 128 x 128 tokens is skipped if no query attends to a key, computed without a mask if all attend to
all, and with `mask_mod` otherwise. Row lengths are multiples of 128 on GPUs (`rlhf.kernels.packing`), so that
few shapes are compiled. Not yet tested on a GPU: here the mask and the forward pass are compared with dense
SDPA on a CPU, where FlexAttention has no backward pass.

Shapes: R rows, T tokens, B blocks of a row (T = 128 B).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.utils.logging import get_logger

from rlhf.kernels.packed_batch import PADDING, SHARED, PackedBatch
from rlhf.kernels.tensors import to_device

BLOCK = 128
SMALLEST_HEAD = 16
"""Smallest head dimension of Triton's matrix products."""
OLDEST_GPU = (8, 0)
"""Compute capability: Ampere."""
COMPILED_FORMS = 128
"""Compiled forms of FlexAttention that torch keeps. One model needs 18: in inference mode, without and
with gradients; one row or several; the first length, any length, one block. More for each window, dtype and
number of heads. At torch's own limit of 8 the next form would materialise all scores, without an error."""

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
logger = get_logger(__name__)


class FlexMasks:
    """BlockMasks of a packed batch by sliding window, built on first use and cached."""

    def __init__(self, batch: PackedBatch) -> None:
        self.batch = batch
        allow_forms()
        self._counts_RBB = to_device(seen_pairs(batch), batch.ids_RT.device)
        self._masks: dict[int | None, BlockMask] = {}

    def within(self, window: int | None) -> BlockMask:
        """The mask of a sliding window; None: no window."""
        if window not in self._masks:
            some_RBB = self._counts_RBB > 0
            # Full blocks are not counted within a window: each block is computed with its mask.
            all_RBB = self._counts_RBB == BLOCK**2 if window is None else torch.zeros_like(some_RBB)
            self._masks[window] = BlockMask.from_kv_blocks(
                *_ordered(some_RBB & ~all_RBB),
                *_ordered(all_RBB),
                BLOCK_SIZE=BLOCK,
                mask_mod=mask_mod(self.batch, window),
            )
        return self._masks[window]

    def dense_R1TT(self) -> Tensor:
        """The mask without a window as a boolean tensor, for other kernels."""
        return self.batch.mask_R1TT()


def allow_forms() -> None:
    """Raise torch's limit of compiled forms of a function to `COMPILED_FORMS`."""
    dynamo = torch._dynamo.config  # noqa: SLF001
    dynamo.recompile_limit = max(dynamo.recompile_limit, COMPILED_FORMS)


@functools.cache
def is_usable(device: torch.device) -> bool:
    """Whether packed rows on this device use FlexAttention; warns once on GPUs that do not support it."""
    if device.type != "cuda":
        return False
    if torch.cuda.get_device_capability(device) < OLDEST_GPU:
        logger.warning("FlexAttention needs an Ampere or newer GPU: packed rows use SDPA with a dense mask.")
        return False
    return True


def fits(query: Tensor, dropout: float) -> bool:
    """Whether FlexAttention supports a layer; warns once if not."""
    if dropout or query.shape[-1] < SMALLEST_HEAD:
        reason = "dropout" if dropout else f"heads of {query.shape[-1]} units"
        logger.warning_once(f"A layer with {reason} uses SDPA with a dense mask instead of FlexAttention.")
        return False
    return True


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, masks: FlexMasks, window: int | None, **extra: Any
) -> tuple[Tensor, None]:
    """(output_RTHD, None) by transformers' compiled FlexAttention, soft caps and sinks included."""
    return flex_attention_forward(module, query, key, value, masks.within(window), **extra)[0], None


def mask_mod(batch: PackedBatch, window: int | None) -> MaskMod:
    """`PackedBatch.mask_R1TT` as a function of indices."""
    tree_RT, branch_RT, positions_RT = batch.tree_RT, batch.branch_RT, batch.positions_RT

    def sees(row: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        query_branch, key_branch = branch_RT[row, query], branch_RT[row, key]
        query_tree, key_tree = tree_RT[row, query], tree_RT[row, key]
        same = ((query_branch == key_branch) | (key_branch == -1)) & (query_tree == key_tree)
        shared = (query_tree != PADDING) & (key_tree == SHARED)
        visible = (same | shared) & (key <= query)
        if window is None:
            return visible
        return visible & (positions_RT[row, query] - positions_RT[row, key] < window)

    return sees


def seen_pairs(batch: PackedBatch) -> Tensor:
    """counts_RBB: visible query-key pairs of each block, computed from the spans on the CPU."""
    tokens = batch.ids_RT.shape[1]
    starts_B = torch.arange(0, tokens, BLOCK)
    counts = []
    for spans in batch.spans:
        counts_TB = torch.zeros(tokens, len(starts_B), dtype=torch.long)
        end = max(span.stop for span in spans)
        padding = [(end, tokens, ())] if end < tokens else []
        for start, stop, sees in [*((span.start, span.stop, span.sees) for span in spans), *padding]:
            for part in sees:
                counts_TB[start:stop] += _overlap(starts_B, part.start, torch.tensor([part.stop]))
            counts_TB[start:stop] += _overlap(starts_B, start, torch.arange(start + 1, stop + 1))
        counts.append(counts_TB.view(len(starts_B), BLOCK, -1).sum(dim=1))
    return torch.stack(counts)


def _overlap(starts_B: Tensor, start: int, stops_T: Tensor) -> Tensor:
    """The number of tokens of each block between `start` and each stop."""
    first_B = starts_B.clamp(min=start)
    last_TB = torch.minimum(starts_B + BLOCK, stops_T[:, None])
    return (last_TB - first_B).clamp(min=0)


def _ordered(blocks_RBB: Tensor) -> tuple[Tensor, Tensor]:
    """Counts and indices of the selected key blocks of each query block, in BlockMask's layout."""
    selected = blocks_RBB[:, None].to(torch.int32)
    counts = selected.sum(dim=-1, dtype=torch.int32)
    return counts, torch.argsort(selected, dim=-1, descending=True, stable=True).to(torch.int32)
