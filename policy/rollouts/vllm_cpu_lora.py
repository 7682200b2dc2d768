"""vLLM's LoRA on a CPU, with matrix products.

vLLM 0.31 gathers a copy of the adapter's weights for every token on a CPU (`vllm/lora/ops/torch_ops/lora_ops.py`): 16 bits
x rank x width a token and layer. Here each adapter in use is multiplied once with all of its tokens. The results are the same;
`benchmarks/rollouts.py` measures the difference in speed.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def use_matrix_products() -> None:
    """Replace the three operations where vLLM's CPU backend looks them up."""
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    for module in (lora_ops, punica_cpu):
        module.bgmv_shrink = shrink
        module.bgmv_expand = expand
        module.bgmv_expand_slice = expand_slice


def shrink(
    inputs: Tensor, weights: Tensor, output: Tensor, adapter_of_token: Tensor, scaling: float = 1.0
) -> None:
    """output[t, :rank] = scaling * A[adapter of t] @ inputs[t]; tokens with adapter -1 are left as they are."""
    for adapter, tokens in _adapters(adapter_of_token):
        matrix = _matrix(weights, adapter, output.dtype)
        output[tokens, : matrix.shape[0]] = scaling * (inputs[tokens].to(output.dtype) @ matrix.T)


def expand(
    inputs: Tensor, weights: Tensor, output: Tensor, adapter_of_token: Tensor, add_inputs: bool = True
) -> None:
    """output[t] (+)= B[adapter of t] @ inputs[t]; adapter and layer may be padded to different widths."""
    for adapter, tokens in _adapters(adapter_of_token):
        product = inputs[tokens].to(output.dtype) @ _matrix(weights, adapter, output.dtype).T
        width = min(product.shape[1], output.shape[1])
        if add_inputs:
            output[tokens, :width] += product[:, :width]
        else:
            output[tokens, :width] = product[:, :width]


def expand_slice(
    inputs: Tensor,
    weights: Tensor,
    output: Tensor,
    adapter_of_token: Tensor,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = True,
) -> None:
    """`expand` into a slice of the output: layers that vLLM fuses have one adapter for each part."""
    expand(inputs, weights, output[:, slice_offset : slice_offset + slice_size], adapter_of_token, add_inputs)


def _adapters(adapter_of_token: Tensor) -> Iterator[tuple[int, slice | Tensor]]:
    """Each adapter in use and its tokens; a slice, without copying, where one adapter has them all."""
    used = torch.unique(adapter_of_token).tolist()
    for adapter in used:
        if adapter >= 0:
            yield (
                adapter,
                slice(None) if len(used) == 1 else (adapter_of_token == adapter).nonzero().squeeze(1),
            )


def _matrix(weights: Tensor, adapter: int, dtype: torch.dtype) -> Tensor:
    return weights[adapter].reshape(weights.shape[-2:]).to(dtype)
