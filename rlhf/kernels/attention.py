"""Attention of packed rows: a token attends only to the trunk of its tree and to its branch.

transformers' models call the attention function named in their config; `packed` is ours. On a CPU,
`rlhf.kernels.inputs` passes the `blocks` of a packed batch, and each block of queries is multiplied with the
keys it attends to. On a GPU `blocks` are FlexAttention masks (`rlhf.kernels.flex`). Without `blocks`
(generation, padded batches) it is transformers' `sdpa`, with a mask if there is one.

On a CPU this replaces torch's fused kernel, whose bfloat16 products reach a fifth of the speed of a plain
matrix product (`benchmarks/attention.py`). Attention probabilities are kept for the backward pass if tokens
attend to few others, and recomputed otherwise, so memory grows linearly with the tokens.

Shapes: R rows, T tokens, H query heads, K key heads (H = K G), D units per head; Q queries and S keys of a
block. N = T G counts queries of the G heads that share keys, ordered by token, so that the queries of a block
are contiguous.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils.logging import get_logger

from rlhf.kernels import flex
from rlhf.kernels.packed_batch import PackedBatch, Span

PACKED = "packed"
"""The name of this attention in a model's config."""

GRAIN = 32
"""Queries and keys of a block are multiples of this (except at the end of a row): full vectors and few
shapes."""
BLOCK_OVERHEAD = 64 * 64
"""Fixed cost of a block, in query-key products."""
KEEP_LIMIT = 256
"""Probabilities are kept if tokens attend to at most this many keys on average: half an MLP's memory in
SmolLM2-135M."""
EXTRA_TERMS = ("softcap", "s_aux", "position_bias")
"""Arguments of models that change attention; our kernel and torch's SDPA would silently ignore them."""

logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Block:
    """Contiguous queries of a row, and the keys that any of them attends to, in order."""

    row: int
    queries: slice
    keys: tuple[slice, ...]
    bias_QS: Tensor
    """0 if a query attends to a key, else -inf, for the last columns; all attend to the columns before."""


def blocks_of(batch: PackedBatch) -> list[Block]:
    """The blocks of a batch on a CPU: every token except padding is a query of exactly one block.

    Empty on other devices, where the vendor's kernel is faster.
    """
    if batch.ids_RT.device.type != "cpu":
        return []
    mask_RTT = batch.mask_R1TT()[:, 0]
    blocks = []
    for row, spans in enumerate(batch.spans):
        for pieces in _grouped(_cells(spans)):
            queries = slice(pieces[0].start, pieces[-1].stop)
            keys = _filled(_seen(pieces), tokens=mask_RTT.shape[2])
            # All queries of one span attend to everything the span attends to before them.
            one_span = len({piece.sees[-1].start for piece in pieces}) == 1
            masked = (slice(queries.start, keys[-1].stop),) if one_span else keys
            columns = torch.cat([torch.arange(part.start, part.stop) for part in masked])
            hidden_QS = ~mask_RTT[row, queries][:, columns.to(mask_RTT.device)]
            bias_QS = torch.zeros(hidden_QS.shape, dtype=torch.bfloat16, device=mask_RTT.device)
            blocks.append(Block(row, queries, keys, bias_QS.masked_fill_(hidden_QS, -torch.inf)))
    return blocks


def _cells(spans: Sequence[Span]) -> Iterator[list[Span]]:
    """Split a row every `GRAIN` tokens into pieces of spans.

    A piece attends to the span before it and the span's keys.
    """
    for start in range(0, max((span.stop for span in spans), default=0), GRAIN):
        stop = start + GRAIN
        yield [
            Span(first, min(span.stop, stop), (*span.sees, slice(span.start, first)))
            for span in spans
            if (first := max(span.start, start)) < min(span.stop, stop)
        ]


def _grouped(cells: Iterable[list[Span]]) -> Iterator[list[Span]]:
    """Join neighbouring cells while one larger product is cheaper than two.

    At most 160 queries of a long sequence.
    """
    group: list[Span] = []
    for cell in cells:
        joined = [*group, *cell]
        if group and _cost(joined) > _cost(group) + _cost(cell):
            yield group
            group = cell
        else:
            group = joined
    if group:
        yield group


def _cost(pieces: Sequence[Span]) -> int:
    return BLOCK_OVERHEAD + (pieces[-1].stop - pieces[0].start) * _count(_seen(pieces))


def _count(parts: Iterable[slice]) -> int:
    """The number of tokens in slices."""
    return sum(int(part.stop - part.start) for part in parts)


def _seen(pieces: Sequence[Span]) -> tuple[slice, ...]:
    """The keys that any of the pieces attends to, in order, adjacent slices joined."""
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


def _filled(parts: tuple[slice, ...], tokens: int) -> tuple[slice, ...]:
    """Extend the keys to a multiple of `GRAIN` by the next ones of the row, which are masked."""
    *before, last = parts
    stop = last.stop + -_count(parts) % GRAIN
    return (*before, slice(last.start, stop)) if stop <= tokens else parts


def enable(model: PreTrainedModel) -> None:
    """Use this attention in a model.

    If the model does not support it, transformers warns and keeps the model's own.
    """
    model.set_attn_implementation(PACKED)
    if model.config._attn_implementation != PACKED:  # noqa: SLF001
        model.base_model.register_forward_pre_hook(
            lambda _, args, kwargs: (args, {k: v for k, v in kwargs.items() if k != "blocks"}),
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
    blocks: Sequence[Block] | flex.FlexMasks | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: (output_RTHD, None) from query_RHTD, key_RKTD and value_RKTD."""
    window = extra.get("sliding_window")
    extra_terms = [name for name in EXTRA_TERMS if extra.get(name) is not None]
    if isinstance(blocks, flex.FlexMasks):
        if flex.fits(query, dropout):
            q_RHTD, k_RKTD, v_RKTD = _as_autocast(query, key, value)
            return flex.attend(module, q_RHTD, k_RKTD, v_RKTD, blocks, window, scaling=scaling, **extra)
        attention_mask, blocks = blocks.dense_R1TT(), []
    windowed = False
    if blocks is not None and attention_mask is not None and window and window < query.shape[2]:
        attention_mask, windowed = _within(attention_mask, extra["position_ids"], window), True
    if blocks and (extra_terms or windowed):
        names = ", ".join([*extra_terms, *(["sliding_window"] if windowed else [])])
        logger.warning_once(f"A layer with {names} uses the slower attention with a dense mask.")
    if extra_terms:
        return _eager_attention(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **extra
        )
    if not blocks or windowed or dropout:
        with _without_cudnn(query, attention_mask):
            return sdpa_attention_forward(  # type: ignore[no-any-return]
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **extra
            )
    query, key, value = _as_autocast(query, key, value)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return blockwise_attention(query, key, value, blocks, scale), None


def _without_cudnn(query: Tensor, mask: Tensor | None) -> AbstractContextManager[Any]:
    """Exclude cuDNN for masks on a GPU: it builds a plan for every new row length, 20 to 40 ms each."""
    if mask is None or query.device.type != "cuda":
        return nullcontext()
    return sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def _as_autocast(*tensors: Tensor) -> list[Tensor]:
    """Cast tensors to autocast's dtype, if autocast is enabled."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    return [tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors]


def _eager_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask_R1TT: Tensor | None, **extra: Any
) -> tuple[Tensor, None]:
    """The model's eager attention, with an additive mask (0 and the lowest number) for a boolean one."""
    if mask_R1TT is None and query.shape[2] > 1:
        sees_QT = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
        mask_R1TT = sees_QT.tril(key.shape[2] - query.shape[2])[None, None]
    if mask_R1TT is not None and mask_R1TT.dtype == torch.bool:
        lowest = torch.finfo(query.dtype).min
        mask_R1TT = torch.zeros_like(mask_R1TT, dtype=query.dtype).masked_fill_(~mask_R1TT, lowest)
    eager = sys.modules[type(module).__module__].eager_attention_forward
    return eager(module, query, key, value, mask_R1TT, **extra)[0], None


def _within(mask_R1TT: Tensor, positions_RT: Tensor, window: int) -> Tensor:
    """The mask of a sliding window of `window` tokens; a branch's positions continue its trunk's."""
    distance_RTT = positions_RT[:, :, None] - positions_RT[:, None, :]
    return mask_R1TT & (distance_RTT < window)[:, None]


def blockwise_attention(
    q_RHTD: Tensor, k_RKTD: Tensor, v_RKTD: Tensor, blocks: Sequence[Block], scale: float
) -> Tensor:
    """out_RTHD = softmax(scale q k' + bias) v, block by block; zero for tokens in no block.

    Products are in the tensors' dtype, softmax sums in float32; gradients of keys and values are accumulated
    in at least float32.
    """
    return _Blockwise.apply(q_RHTD, k_RKTD, v_RKTD, blocks, scale)  # type: ignore[no-any-return,no-untyped-call]


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_RHTD: Tensor, k_RKTD: Tensor, v_RKTD: Tensor, blocks: Sequence[Block], scale: float
    ) -> Tensor:
        q_RKND, k_RKTD, v_RKTD = (
            _by_key_head(q_RHTD, k_RKTD.shape[1]),
            k_RKTD.contiguous(),
            v_RKTD.contiguous(),
        )
        ctx.blocks, ctx.scale, ctx.group = blocks, scale, q_RHTD.shape[1] // k_RKTD.shape[1]
        out_RKND = q_RKND.new_zeros(*q_RKND.shape[:3], v_RKTD.shape[3])
        keep = any(ctx.needs_input_grad) and _keeps_probabilities(blocks)
        kept: list[Tensor] = []
        with _no_autocast(q_RHTD):
            for block in blocks:
                p_KNS = _probabilities(_queries(q_RKND, block, ctx.group), _keys(k_RKTD, block), block, scale)
                torch.bmm(p_KNS, _keys(v_RKTD, block), out=_queries(out_RKND, block, ctx.group))
                if keep:
                    kept.append(p_KNS)
        ctx.save_for_backward(q_RKND, k_RKTD, v_RKTD, *kept)
        return _by_token(out_RKND, ctx.group)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        q_RKND, k_RKTD, v_RKTD, *kept = ctx.saved_tensors
        d_out_RKND = _by_key_head(gradients[0].transpose(1, 2), k_RKTD.shape[1])
        d_q_RKND = torch.zeros_like(q_RKND)
        sums = torch.promote_types(q_RKND.dtype, torch.float32)
        d_k_RKTD, d_v_RKTD = torch.zeros_like(k_RKTD, dtype=sums), torch.zeros_like(v_RKTD, dtype=sums)
        with _no_autocast(q_RKND):
            for number, block in enumerate(ctx.blocks):
                q_KND, d_out_KND, d_q_KND = (
                    _queries(x_RKND, block, ctx.group) for x_RKND in (q_RKND, d_out_RKND, d_q_RKND)
                )
                k_KSD = _keys(k_RKTD, block)
                p_KNS = kept[number] if kept else _probabilities(q_KND, k_KSD, block, ctx.scale)
                _add(torch.bmm(p_KNS.transpose(1, 2), d_out_KND), d_v_RKTD, block)
                d_p_KNS = torch.bmm(d_out_KND, _keys(v_RKTD, block).transpose(1, 2))
                d_s_KNS = torch._softmax_backward_data(d_p_KNS, p_KNS, -1, p_KNS.dtype)  # noqa: SLF001
                _scaled(d_s_KNS, k_KSD, ctx.scale, out=d_q_KND)
                _add(_scaled(d_s_KNS.transpose(1, 2), q_KND, ctx.scale), d_k_RKTD, block)
        d_q_RHTD = _by_token(d_q_RKND, ctx.group).transpose(1, 2)
        return d_q_RHTD, d_k_RKTD.to(k_RKTD.dtype), d_v_RKTD.to(v_RKTD.dtype), None, None


def _keeps_probabilities(blocks: Sequence[Block]) -> bool:
    products = sum(_count([block.queries]) * _count(block.keys) for block in blocks)
    return products <= KEEP_LIMIT * _count(block.queries for block in blocks)


def _no_autocast(x: Tensor) -> torch.autocast:
    """Disable autocast, which would make softmax return float32 at ten times the cost."""
    return torch.autocast(x.device.type, enabled=False)


def _scaled(a: Tensor, b: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """scale a b, rounded once."""
    return torch.baddbmm(a.new_empty(1, 1, 1), a, b, beta=0, alpha=scale, out=out)


def _probabilities(q_KND: Tensor, k_KSD: Tensor, block: Block, scale: float) -> Tensor:
    """p_KNS = softmax(scale q k' + bias) over the keys; N = Q G."""
    s_KNS = _scaled(q_KND, k_KSD.transpose(1, 2), scale)
    queries, columns = block.bias_QS.shape
    s_KNS.view(len(s_KNS), queries, -1, s_KNS.shape[2])[..., -columns:] += block.bias_QS[:, None]
    return torch.softmax(s_KNS, dim=-1)


def _by_key_head(x_RHTD: Tensor, key_heads: int) -> Tensor:
    """x_RKND with N = T G, contiguous."""
    rows, heads, tokens, units = x_RHTD.shape
    x_RKGTD = x_RHTD.reshape(rows, key_heads, heads // key_heads, tokens, units)
    return x_RKGTD.transpose(2, 3).reshape(rows, key_heads, -1, units).contiguous()


def _by_token(x_RKND: Tensor, group: int) -> Tensor:
    """x_RTHD from x_RKND."""
    rows, key_heads, _, units = x_RKND.shape
    x_RKTGD = x_RKND.view(rows, key_heads, -1, group, units)
    return x_RKTGD.transpose(1, 2).reshape(rows, -1, key_heads * group, units)


def _queries(x_RKND: Tensor, block: Block, group: int) -> Tensor:
    return x_RKND[block.row, :, block.queries.start * group : block.queries.stop * group]


def _keys(x_RKTD: Tensor, block: Block) -> Tensor:
    parts = [x_RKTD[block.row, :, part] for part in block.keys]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _add(x_KSD: Tensor, sums_RKTD: Tensor, block: Block) -> None:
    start = 0
    for part in block.keys:
        count = part.stop - part.start
        sums_RKTD[block.row, :, part] += x_KSD[:, start : start + count]
        start += count


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)
