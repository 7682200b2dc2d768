"""A frozen model computed in float32 for a moment, to tell rounding from an error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from rlhf.distributed.sharding import is_sharded

MOST_PARAMETERS = 2_000_000_000
"""Beyond this a second copy of the weights in float32 (8 GB) may not fit beside the first."""


def fits_in_float32(model: nn.Module) -> bool:
    """Whether `float32_products` is possible: the weights are not sharded, and a float32 copy is small enough."""
    return not is_sharded(model) and sum(p.numel() for p in model.parameters()) <= MOST_PARAMETERS


@contextlib.contextmanager
def float32_products(model: nn.Module) -> Iterator[None]:
    """Within the block the model computes in float32; its weights are the same numbers before, within and after.

    4-bit weights stay packed: their layers multiply in float32. Not for a model that is being trained.
    """
    tensors = [
        tensor
        for tensor in (*model.parameters(), *model.buffers())
        if tensor.dtype in (torch.bfloat16, torch.float16) and getattr(tensor, "quant_state", None) is None
    ]
    kept = [tensor.data for tensor in tensors]
    layers = [
        module for module in model.modules() if isinstance(vars(module).get("compute_dtype"), torch.dtype)
    ]
    formats = [layer.compute_dtype for layer in layers]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.float()
        for layer in layers:
            layer.compute_dtype = torch.float32  # type: ignore[assignment]
        yield
    finally:
        for tensor, data in zip(tensors, kept, strict=True):
            tensor.data = data
        for layer, before in zip(layers, formats, strict=True):
            layer.compute_dtype = before
