"""vLLM's LoRA on a CPU, with matrix products.

vLLM 0.31 gathers a copy of the adapter's weights for every token on a CPU (`vllm/lora/ops/torch_ops/lora_ops.py`): 16 bits
x rank x width a token and layer. Here each adapter in use is multiplied once with all of its tokens, by two products a layer; which
tokens those are is found once a step. The results are the same; `benchmarks/rollouts.py` measures the speed.

Shapes: T tokens, D inputs of a layer, O outputs, R ranks of all its slices together. A layer that vLLM fuses, such as query, key
and value, has a slice for each part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
SHAPES = 32
"""So many numbers of tokens have their kernels kept; vLLM's own layers say the same."""
Tokens = slice | Tensor
"""Places of tokens; a slice, for which nothing is copied, where one adapter has them all."""


def use_matrix_products() -> None:
    """Replace what adapters add in vLLM's CPU backend."""
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
    """Each adapter in use and its tokens; those marked -1 have none."""
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
        key = (id(lora_a_stacked), adapter)  # a layer keeps its stacks as long as it lives
        if key not in self.factors:
            self.factors[key] = joined(lora_a_stacked, lora_b_stacked, adapter)
        shrink, expand = self.factors[key]
        added = expand(shrink(x[tokens]))
        if isinstance(tokens, slice):
            y.add_(added, alpha=scale)
        else:
            y.index_add_(0, tokens, added, alpha=scale)


def joined(a: Sequence[Tensor], b: Sequence[Tensor], adapter: int) -> tuple[Product, Product]:
    """The products with A and with B, an adapter's slices side by side: two a layer, however many slices it has."""
    a_RD = torch.cat([stack[adapter, 0] for stack in a])
    b_OR = torch.block_diag(*(stack[adapter, 0] for stack in b))  # type: ignore[no-untyped-call]
    return product_with(a_RD), product_with(b_OR)


def product_with(weight_OI: Tensor) -> Product:
    """x -> x W', by the kernel that vLLM multiplies its own layers with, where the machine has it: W is laid out for it once."""
    from vllm import _custom_ops as ops

    if not ops._supports_onednn:  # noqa: SLF001  # what vLLM's own layers ask
        return lambda x_TI: x_TI @ weight_OI.T
    handler = ops.create_onednn_mm(weight_OI.T, SHAPES)
    return lambda x_TI: ops.onednn_mm(handler, x_TI, None)


def add_nothing(self: Any, *_: Any, **__: Any) -> None:
    """What adapters add to embedding and logits: ours have no part there, and vLLM would gather and add zeros."""
