"""What a step must compute at the least, in floating-point operations: matrix products and attention, with
LoRA on a frozen base.

W: weights of the base's linear layers, head excluded; A: weights of the adapter; n tokens; v pairs of a
token and one it may look at; d: width of all heads and layers together. A product with a weight is two
operations a token; a look is 2 d for the score and 2 d for the sum.

    forward            2 n (W + A) + 4 d v
    backward           2 n W       + 4 n A + 8 d v       gradients of inputs, and of the adapter's weights
    log-probabilities  2 m V D for m tokens of V words and D units: once forward, twice more for the gradient

Of W and A what comes after the last attention is needed for the tokens that are read alone
(`rlhf/kernels/last_layer.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rlhf.kernels.packing import PADDING, PackedBatch, Tree


@dataclass(frozen=True)
class Shape:
    """Of a model with an adapter: W, A, d, V, D as above, and of W and A what comes after the last
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
        """The shape of a PEFT model; of several adapters the one that is active is counted."""
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
    """n of a tree by itself, or of packed rows, whose trees share what they begin with."""
    return work.tokens if isinstance(work, Tree) else work.computed_tokens


def looks(work: Tree | PackedBatch) -> int:
    """v: each token looks at what its tree shares before it and at its own branch so far, itself included."""
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
    """One pass without gradients; `read` is how many tokens are read in all, where the last layer spares
    the others."""
    return _passes(shape, works, read, base=2, adapter=2 if adapter else 0, look=4)


def training(shape: Shape, works: Iterable[Tree | PackedBatch], *, read: int | None = None) -> int:
    """Forward and backward pass; `read` as in `forward`."""
    return _passes(shape, works, read, base=4, adapter=6, look=12)


def _passes(
    shape: Shape, works: Iterable[Tree | PackedBatch], read: int | None, *, base: int, adapter: int, look: int
) -> int:
    """With so many operations for a token and a weight of the base or of the adapter, and for a look and a
    unit."""
    works = list(works)
    computed = sum(map(tokens, works))
    unread = 0 if read is None else computed - read
    return (
        computed * (base * shape.base + adapter * shape.adapter)
        - unread * (base * shape.base_after + adapter * shape.adapter_after)
        + look * shape.attention * sum(map(looks, works))
    )


def policy_update(shape: Shape, trees: Iterable[Tree], answer_tokens: int) -> int:
    """Scoring, the reference's log-probabilities, and the policy's with their gradient."""
    trees = list(trees)
    head = 2 * shape.words * shape.width * answer_tokens
    return (
        forward(shape, trees, read=sum(len(tree.branches) for tree in trees))
        + forward(shape, trees, adapter=False, read=answer_tokens)
        + training(shape, trees, read=answer_tokens)
        + head  # the reference's
        + 3 * head
    )
