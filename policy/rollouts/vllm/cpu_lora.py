"""LoRA of vLLM's CPU backend by matrix products.

vLLM 0.31 gathers a copy of the adapter's weights for every token on a CPU
(`vllm/lora/ops/torch_ops/lora_ops.py`): 16 bits x rank x width per token and layer. Here each active adapter
is multiplied once with all of its tokens, by two products per layer; the tokens of each adapter are
determined once per step. The results are the same; `benchmarks/rollouts.py` measures the speed.

Shapes: T tokens, D inputs of a layer, O outputs, R ranks of all its slices together. A layer that vLLM fuses,
such as query, key and value, has a slice for each part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
SHAPES = 32
"""Token counts whose kernels are cached, as in vLLM's own layers."""
Tokens = slice | Tensor
"""Indices of tokens; a slice, which copies nothing, where one adapter has all tokens."""


def use_matrix_products() -> None:
    """Replace the LoRA operations of vLLM's CPU backend."""
    from vllm.lora.model_manager import LoRAModelManager
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    if PunicaWrapperCPU.add_lora_linear is add_lora_linear:
        return
    stock_update, stock_activate = PunicaWrapperCPU.update_metadata, LoRAModelManager.activate_adapter

    def update_metadata(self: Any, *args: Any, **kwargs: Any) -> None:
        stock_update(self, *args, **kwargs)
        self.tokens_by_adapter = tokens_by_adapter(self.token_lora_indices)

    def activate_adapter(self: Any, lora_id: int) -> bool:
        changed: bool = stock_activate(self, lora_id)
        if changed:  # weights were written into the layers
            for wrapper in self.punica_wrapper_mapping.values():
                wrapper.factors = {}
        return changed

    LoRAModelManager.activate_adapter = activate_adapter
    PunicaWrapperCPU.update_metadata = update_metadata
    PunicaWrapperCPU.factors = {}
    PunicaWrapperCPU.add_lora_linear = add_lora_linear
    PunicaWrapperCPU.add_lora_embedding = PunicaWrapperCPU.add_lora_logits = add_nothing


def tokens_by_adapter(adapter_of_token: Tensor) -> dict[int, Tokens]:
    """The tokens of each active adapter; tokens marked -1 have none."""
    used = torch.unique(adapter_of_token).tolist()
    if len(used) == 1:
        return {adapter: slice(None) for adapter in used if adapter >= 0}
    return {adapter: (adapter_of_token == adapter).nonzero().squeeze(1) for adapter in used if adapter >= 0}


def add_lora_linear(
    self: Any,
    y: Tensor,
    x: Tensor,
    lora_a_stacked: tuple[Tensor, ...],
    lora_b_stacked: tuple[Tensor, ...],
    scale: float,
    *_: Any,
    **__: Any,
) -> None:
    """y[t] += scale * B A x[t], with A and B those of token t's adapter; in place.

    Both products are rounded to the number format of x, as vLLM's are.
    """
    for adapter, tokens in self.tokens_by_adapter.items():
        key = (id(lora_a_stacked), adapter)  # the stacks live as long as their layer
        if key not in self.factors:
            self.factors[key] = joined(lora_a_stacked, lora_b_stacked, adapter)
        shrink, expand = self.factors[key]
        added = expand(shrink(x[tokens]))
        if isinstance(tokens, slice):
            y.add_(added, alpha=scale)
        else:
            y.index_add_(0, tokens, added, alpha=scale)


def joined(a: Sequence[Tensor], b: Sequence[Tensor], adapter: int) -> tuple[Product, Product]:
    """The products with A and B of all slices of an adapter: two per layer, whatever the number of slices."""
    a_RD = torch.cat([stack[adapter, 0] for stack in a])
    b_OR = torch.block_diag(*(stack[adapter, 0] for stack in b))  # type: ignore[no-untyped-call]
    return product_with(a_RD), product_with(b_OR)


def product_with(weight_OI: Tensor) -> Product:
    """x -> x W', by vLLM's oneDNN kernel where available; W is repacked for it once."""
    from vllm import _custom_ops as ops

    if not ops._supports_onednn:  # noqa: SLF001  # as vLLM's own layers do
        return lambda x_TI: x_TI @ weight_OI.T
    handler = ops.create_onednn_mm(weight_OI.T, SHAPES)
    return lambda x_TI: ops.onednn_mm(handler, x_TI, None)


def add_nothing(self: Any, *_: Any, **__: Any) -> None:
    """No LoRA on embedding and logits: these adapters have none there, and vLLM would gather and add
    zeros."""
