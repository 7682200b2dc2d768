"""Minimum floating-point operations of a step: matrix products and attention, with LoRA on a frozen base.

W: weights of the base's linear layers without the head; A: weights of the adapter; n: tokens; v: pairs of a
query and a key that the attention mask allows; d: width of all heads, summed over layers. A weight costs two
operations a token; a (query, key) pair costs 2 d for its score and 2 d for the weighted sum of values.

    forward            2 n (W + A) + 4 d v
    backward           2 n W       + 4 n A + 8 d v       gradients of inputs, and of the adapter's weights
    log-probabilities  2 m V D for m tokens of V words and D units: once forward, twice more for the gradient

Weights after the last attention are applied only to the tokens whose outputs are read
(`rlhf/kernels/last_layer.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rlhf.kernels.packed_batch import PADDING, PackedBatch
from rlhf.kernels.packing import Tree


@dataclass(frozen=True)
class Shape:
    """Sizes of a model with an adapter: W, A, d, V, D as above, and the parts of W and A after the last
    attention."""

    base: int
    adapter: int
    attention: int
    words: int
    width: int
    base_after: int = 0
    adapter_after: int = 0

    @classmethod
    def of(cls, model: Any) -> Shape:
        """The shape of a PEFT model with its active adapter."""
        config = model.config.get_text_config()
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        base = adapter = base_after = adapter_after = 0
        last = f".layers.{config.num_hidden_layers - 1}."
        for name, weight in model.named_parameters():
            after = last in name and (".mlp." in name or ".o_proj." in name)
            if f".lora_A.{model.active_adapter}" in name or f".lora_B.{model.active_adapter}" in name:
                adapter += weight.numel()
                adapter_after += after * weight.numel()
            elif name.endswith("base_layer.weight"):
                state = getattr(weight, "quant_state", None)  # 4-bit weights are packed
                size = weight.numel() if state is None else state.shape.numel()
                base += size
                base_after += after * size
        return cls(
            base,
            adapter,
            config.num_hidden_layers * config.num_attention_heads * head,
            config.vocab_size,
            config.hidden_size,
            base_after,
            adapter_after,
        )


def tokens(work: Tree | PackedBatch) -> int:
    """n of a tree, or of packed rows, whose trees share their common prefix."""
    return work.tokens if isinstance(work, Tree) else work.computed_tokens


def looks(work: Tree | PackedBatch) -> int:
    """v: each token attends to its tree's trunk before it and to its own branch up to itself."""
    if isinstance(work, PackedBatch):
        computed_RT = work.tree_RT != PADDING
        return int((work.mask_R1TT()[:, 0] & computed_RT[:, :, None]).sum())
    trunk = len(work.trunk)
    return _triangle(trunk) + sum(trunk * len(branch) + _triangle(len(branch)) for branch in work.branches)


def _triangle(length: int) -> int:
    return length * (length + 1) // 2


def forward(
    shape: Shape, works: Iterable[Tree | PackedBatch], *, adapter: bool = True, read: int | None = None
) -> int:
    """Operations of a forward pass; `read`: number of tokens whose outputs are read (None: all)."""
    return _passes(shape, works, read, base=2, adapter=2 if adapter else 0, look=4)


def training(shape: Shape, works: Iterable[Tree | PackedBatch], *, read: int | None = None) -> int:
    """Operations of a forward and backward pass; `read` as in `forward`."""
    return _passes(shape, works, read, base=4, adapter=6, look=12)


def _passes(
    shape: Shape, works: Iterable[Tree | PackedBatch], read: int | None, *, base: int, adapter: int, look: int
) -> int:
    """Operations, given those per token and weight of the base and the adapter, and per attention pair and
    unit of width."""
    works = list(works)
    computed = sum(map(tokens, works))
    unread = 0 if read is None else computed - read
    return (
        computed * (base * shape.base + adapter * shape.adapter)
        - unread * (base * shape.base_after + adapter * shape.adapter_after)
        + look * shape.attention * sum(map(looks, works))
    )


def policy_update(shape: Shape, trees: Iterable[Tree], answer_tokens: int) -> int:
    """Operations of scoring, the reference's log-probabilities, and the policy's with their gradient."""
    trees = list(trees)
    head = 2 * shape.words * shape.width * answer_tokens
    return (
        forward(shape, trees, read=sum(len(tree.branches) for tree in trees))
        + forward(shape, trees, adapter=False, read=answer_tokens)
        + training(shape, trees, read=answer_tokens)
        + head  # the reference's
        + 3 * head
    )
