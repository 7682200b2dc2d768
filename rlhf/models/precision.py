"""Compute a frozen model temporarily in float32, to distinguish rounding from errors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from rlhf.distributed.sharding import is_sharded

MOST_PARAMETERS = 2_000_000_000
"""For larger models a second copy of the weights in float32 (8 GB) may not fit into memory."""


def fits_in_float32(model: nn.Module) -> bool:
    """Whether `float32_products` is possible: weights are not sharded, and the model is small enough."""
    return not is_sharded(model) and sum(p.numel() for p in model.parameters()) <= MOST_PARAMETERS


@contextlib.contextmanager
def float32_products(model: nn.Module) -> Iterator[None]:
    """Compute in float32 within the block; the values of the weights do not change.

    4-bit weights stay packed, and their layers multiply in float32. Not for a model in training.
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
