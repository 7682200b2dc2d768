"""Attention of packed rows: every token looks at the trunk of its tree and at its own branch, and no other product is computed.

transformers' models call the attention function that their config names; `packed` is ours. Given the `blocks` of a packed batch, which
`rlhf.core.forwards.packed_inputs` sends along on a CPU, it multiplies each block of queries with the keys it sees. Without them
(generation, padded batches, GPUs) it is transformers' own `sdpa`, with the mask where there is one.

On a CPU this replaces torch's fused kernel, whose bfloat16 products run at a fifth of what a plain matrix product reaches
(`benchmarks/attention.py`). Probabilities of a block are made, used and dropped; the backward pass makes them again, so memory
grows with the tokens and not with their square.

Shapes: R rows, T tokens, H heads of queries, K heads of keys (H = K G), D units of a head; Q queries and S keys of a block.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils.logging import get_logger

from rlhf.core.packing import PackedBatch, Span

PACKED = "packed"
"""The name of this attention in a model's config."""

QUERIES = 128
"""The most queries of a block: the products of fewer are slow, and of more, many are masked."""
CALL = 64 * 64
"""What a block costs beside its products, in products."""
OWN_WAYS = ("softcap", "s_aux", "position_bias")
"""What some models add to attention, and these products leave out."""

logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Block:
    """Queries that lie side by side in a row, and the keys that any of them sees, in order."""

    row: int
    queries: slice
    keys: tuple[slice, ...]
    bias_QS: Tensor
    """0 where a query sees a key and -inf where not, for the last columns; all see those before."""


def blocks_of(batch: PackedBatch) -> list[Block]:
    """How the rows of a batch are computed on a CPU: every token that is no padding is a query of exactly one block.

    Elsewhere the vendor's kernel is faster, and the list is empty.
    """
    if batch.ids_RT.device.type != "cpu":
        return []
    mask_RTT = batch.mask_R1TT()[:, 0]
    blocks = []
    for row, spans in enumerate(batch.spans):
        for pieces in _grouped(list(_pieces(spans))):
            queries = slice(pieces[0].start, pieces[-1].stop)
            keys = _seen(pieces)
            # What a piece of one span sees before itself, all of its tokens see.
            partly = (queries,) if len(pieces) == 1 else keys
            columns = torch.cat([torch.arange(part.start, part.stop) for part in partly])
            hidden_QS = ~mask_RTT[row, queries][:, columns.to(mask_RTT.device)]
            bias_QS = torch.zeros(hidden_QS.shape, dtype=torch.bfloat16, device=mask_RTT.device)
            blocks.append(Block(row, queries, keys, bias_QS.masked_fill_(hidden_QS, -torch.inf)))
    return blocks


def _pieces(spans: Sequence[Span]) -> Iterator[Span]:
    """Spans cut evenly into pieces of at most `QUERIES` tokens; a piece sees what its span sees, and the span before it."""
    for span in spans:
        count = -(-(span.stop - span.start) // QUERIES)
        edges = [span.start + (span.stop - span.start) * n // count for n in range(count + 1)]
        for start, stop in itertools.pairwise(edges):
            yield Span(start, stop, (*span.sees, slice(span.start, start)))


def _grouped(pieces: Sequence[Span]) -> Iterator[list[Span]]:
    """Neighbours together where one larger product is cheaper than two."""
    group: list[Span] = []
    for piece in pieces:
        together = [*group, piece]
        if group and _cost(together) > _cost(group) + _cost([piece]):
            yield group
            group = [piece]
        else:
            group = together
    if group:
        yield group


def _cost(pieces: Sequence[Span]) -> int:
    keys = sum(part.stop - part.start for part in _seen(pieces))
    return int(CALL + (pieces[-1].stop - pieces[0].start) * keys)


def _seen(pieces: Sequence[Span]) -> tuple[slice, ...]:
    """The keys that any of the pieces sees, in order and without gaps that need none."""
    parts = [part for piece in pieces for part in (*piece.sees, slice(piece.start, piece.stop))]
    joined: list[slice] = []
    for part in sorted(parts, key=lambda part: (part.start, part.stop)):
        if part.start == part.stop:
            continue
        if joined and part.start <= joined[-1].stop:
            joined[-1] = slice(joined[-1].start, max(part.stop, joined[-1].stop))
        else:
            joined.append(part)
    return tuple(joined)


def enable(model: PreTrainedModel) -> None:
    """Let a model attend by this file; one that cannot keeps its own attention, and transformers says so in a line."""
    model.set_attn_implementation(PACKED)
    if model.config._attn_implementation != PACKED:  # noqa: SLF001  # transformers' name for it everywhere
        model.base_model.register_forward_pre_hook(
            lambda _, given, named: (given, {k: v for k, v in named.items() if k != "blocks"}),
            with_kwargs=True,
        )


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    blocks: Sequence[Block] | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """What transformers calls: (output_RTHD, None) of query_RHTD, key_RKTD and value_RKTD."""
    window = extra.get("sliding_window")
    others = [name for name in OWN_WAYS if extra.get(name) is not None]
    if blocks is not None and attention_mask is not None and window and window < query.shape[2]:
        attention_mask = _within(attention_mask, extra["position_ids"], window)
        others.append("sliding_window")
    if blocks and others:
        logger.warning_once(f"A layer with {', '.join(others)} takes the slower attention with a mask.")
    if not blocks or others or dropout:
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **extra
        )
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return blockwise_attention(query, key, value, blocks, scale), None


def _within(mask_R1TT: Tensor, positions_RT: Tensor, window: int) -> Tensor:
    """The mask of a layer that sees the last `window` tokens only; a branch's positions go on from its trunk's."""
    distance_RTT = positions_RT[:, :, None] - positions_RT[:, None, :]
    return mask_R1TT & (distance_RTT < window)[:, None]


def blockwise_attention(
    q_RHTD: Tensor, k_RKTD: Tensor, v_RKTD: Tensor, blocks: Sequence[Block], scale: float
) -> Tensor:
    """out_RTHD = softmax(scale q k' + bias) v, block by block; zero for tokens in no block.

    Products are in the tensors' format and softmax sums in float32; gradients of keys and values are summed in at least float32.
    """
    return _Blockwise.apply(q_RHTD, k_RKTD, v_RKTD, blocks, scale)  # type: ignore[no-any-return,no-untyped-call]


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_RHTD: Tensor, k_RKTD: Tensor, v_RKTD: Tensor, blocks: Sequence[Block], scale: float
    ) -> Tensor:
        ctx.save_for_backward(q_RHTD, k_RKTD, v_RKTD)
        ctx.blocks, ctx.scale = blocks, scale
        rows, heads, tokens, _ = q_RHTD.shape
        out_RTHD = q_RHTD.new_zeros(rows, tokens, heads, v_RKTD.shape[-1])
        with torch.autocast(
            q_RHTD.device.type, enabled=False
        ):  # it would make softmax return float32, at ten times the cost
            for block in blocks:
                q_KND, k_KSD = _queries(q_RHTD, block, k_RKTD.shape[1]), _keys(k_RKTD, block)
                p_KNS = _probabilities(q_KND, k_KSD, block.bias_QS, scale)
                _spread(torch.bmm(p_KNS, _keys(v_RKTD, block)), out_RTHD.transpose(1, 2), block)
        return out_RTHD

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        q_RHTD, k_RKTD, v_RKTD = ctx.saved_tensors
        d_out_RHTD = gradients[0].transpose(1, 2)
        kinds = k_RKTD.shape[1]
        d_q_RHTD = torch.zeros_like(q_RHTD)
        sums = torch.promote_types(q_RHTD.dtype, torch.float32)
        d_k_RKTD, d_v_RKTD = torch.zeros_like(k_RKTD, dtype=sums), torch.zeros_like(v_RKTD, dtype=sums)
        with torch.autocast(q_RHTD.device.type, enabled=False):
            for block in ctx.blocks:
                q_KND, k_KSD, v_KSD = (
                    _queries(q_RHTD, block, kinds),
                    _keys(k_RKTD, block),
                    _keys(v_RKTD, block),
                )
                d_out_KND = _queries(d_out_RHTD, block, kinds)
                p_KNS = _probabilities(q_KND, k_KSD, block.bias_QS, ctx.scale)
                _add(torch.bmm(p_KNS.transpose(1, 2), d_out_KND), d_v_RKTD, block)
                d_p_KNS = torch.bmm(d_out_KND, v_KSD.transpose(1, 2))
                d_s_KNS = torch._softmax_backward_data(d_p_KNS, p_KNS, -1, p_KNS.dtype)  # noqa: SLF001
                _spread(_scaled(d_s_KNS, k_KSD, ctx.scale), d_q_RHTD, block)
                _add(_scaled(d_s_KNS.transpose(1, 2), q_KND, ctx.scale), d_k_RKTD, block)
        return d_q_RHTD, d_k_RKTD.to(k_RKTD.dtype), d_v_RKTD.to(v_RKTD.dtype), None, None


def _scaled(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale a b, rounded once."""
    return torch.baddbmm(a.new_empty(1, 1, 1), a, b, beta=0, alpha=scale)


def _probabilities(q_KND: Tensor, k_KSD: Tensor, bias_QS: Tensor, scale: float) -> Tensor:
    """p_KNS = softmax(scale q k' + bias) over the keys; N = G Q."""
    s_KNS = _scaled(q_KND, k_KSD.transpose(1, 2), scale)
    queries, columns = bias_QS.shape
    s_KNS.view(len(s_KNS), -1, queries, s_KNS.shape[2])[..., -columns:].add_(bias_QS)
    return torch.softmax(s_KNS, dim=-1)


def _queries(x_RHTD: Tensor, block: Block, kinds: int) -> Tensor:
    """x_KND of the block: the queries of the G heads that share keys one after another."""
    x_HQD = x_RHTD[block.row, :, block.queries]
    return x_HQD.reshape(kinds, -1, x_HQD.shape[2])


def _keys(x_RKTD: Tensor, block: Block) -> Tensor:
    parts = [x_RKTD[block.row, :, part] for part in block.keys]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _spread(x_KND: Tensor, into_RHTD: Tensor, block: Block) -> None:
    place = into_RHTD[block.row, :, block.queries]
    place.copy_(x_KND.view(place.shape))


def _add(x_KSD: Tensor, sums_RKTD: Tensor, block: Block) -> None:
    start = 0
    for part in block.keys:
        count = part.stop - part.start
        sums_RKTD[block.row, :, part] += x_KSD[:, start : start + count]
        start += count


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)
