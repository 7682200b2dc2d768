"""The last layer of a model, computed for the tokens that are read and for no others.

    attended  = attention(norm(hidden))            for all T tokens: they are keys and values for each other
    hidden'_M = hidden[read] + attended[read] W_o'
    out_M     = norm(hidden'_M + mlp(norm(hidden'_M)))

A score is read at one token of a sequence, a log-probability at the tokens of an answer. What the last layer does after attention to
any other token, nothing reads: 84 % of a layer's weights in SmolLM2-135M, 90 % in Llama-3.1-70B, are left out for it, forwards and backwards, and
nothing of it is kept. The numbers are those of the whole pass.

Shapes: R rows, T tokens, D hidden units; M tokens that are read.
"""

from __future__ import annotations

import inspect
import types
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from rlhf.kernels.inputs import inputs_for

LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")
"""Classes of transformers whose forward is that of `LlamaDecoderLayer`, word for word: a test reads them."""

ReadAt = tuple[Tensor, Tensor]
"""Tokens of rows: (rows_M, columns_M)."""


def enable(model: PreTrainedModel) -> None:
    """Let `read_states` spare what the last layer need not compute; a model of another class computes all of it."""
    last = _last(model.base_model)
    if type(last).__name__ in LAYERS:
        last.forward = types.MethodType(_forward, last)


def read_states(body: Any, read_at: ReadAt, *args: Any, **inputs: Any) -> Tensor:
    """hidden_MD: what a base without its head ends in at some tokens, in their order."""
    forward = getattr(_last(body), "forward", None)
    if getattr(forward, "__func__", None) is not _forward:
        return pick_states(body, read_at, *args, **inputs)
    inputs = inputs_for(body, inputs)
    return body(*args, **inputs, read_at=read_at, use_cache=False).last_hidden_state  # type: ignore[no-any-return]


def pick_states(body: Any, read_at: ReadAt, *args: Any, **inputs: Any) -> Tensor:
    """The same, of a last layer that is computed for all tokens."""
    return every_state(body, *args, **inputs)[read_at]


def every_state(body: Any, *args: Any, **inputs: Any) -> Tensor:
    """hidden_RTD: what a base without its head ends in at all tokens.

    Models without position embeddings, or with relative ones, take no `position_ids`; only rows of one sequence reach them.
    """
    if "position_ids" not in inspect.signature(body.forward).parameters:
        inputs.pop("position_ids", None)
    inputs = inputs_for(body, inputs)
    return body(*args, **inputs, use_cache=False).last_hidden_state  # type: ignore[no-any-return]


def _last(body: Any) -> Any:
    """The last layer, where a model keeps its layers under that name."""
    return body.layers[-1] if hasattr(body, "layers") else None


def _forward(layer: Any, hidden_RTD: Tensor, *, read_at: ReadAt | None = None, **named: Any) -> Tensor:
    if read_at is None:
        return type(layer).forward(layer, hidden_RTD, **named)  # type: ignore[no-any-return]
    # Between attention and its output nothing can be said to it but by a hook.
    picking = layer.self_attn.o_proj.register_forward_pre_hook(lambda _, given: (given[0][read_at],))
    try:
        attended_MD, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_RTD), **named)
    finally:
        picking.remove()
    hidden_MD = hidden_RTD[read_at] + attended_MD
    return hidden_MD + layer.mlp(layer.post_attention_layernorm(hidden_MD))  # type: ignore[no-any-return]
