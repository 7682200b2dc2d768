"""Compute a frozen model temporarily in float32, to distinguish rounding from errors.

The values of the weights do not change. 4-bit weights stay packed, and their layers multiply in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.distributed.sharding import is_sharded

MOST_PARAMETERS = 2_000_000_000
"""For larger models a second copy of the weights in float32 (8 GB) may not fit into memory."""


def fits_in_float32(model: nn.Module) -> bool:
    """Whether `float32_products` is possible: weights are not sharded, and the model is small enough."""
    return not is_sharded(model) and sum(p.numel() for p in model.parameters()) <= MOST_PARAMETERS


@contextmanager
def float32_products(model: nn.Module) -> Iterator[None]:
    """Compute in float32 within the block, with a copy of all weights."""
    tensors = [
        tensor
        for tensor in (*model.parameters(), *model.buffers())
        if tensor.dtype in (torch.bfloat16, torch.float16) and getattr(tensor, "quant_state", None) is None
    ]
    kept = [tensor.data for tensor in tensors]
    with _quantized_products(model):
        try:
            for tensor in tensors:
                tensor.data = tensor.data.float()
            yield
        finally:
            for tensor, data in zip(tensors, kept, strict=True):
                tensor.data = data


@contextmanager
def layers_in_float32(body: nn.Module) -> Iterator[None]:
    """Compute in float32 within the block, with a copy of one layer at a time."""
    originals: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}

    def enter(unit: nn.Module, *_: Any) -> None:
        originals[unit] = []
        for module in unit.modules():
            tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            for tensor in tensors if _compute_dtype(module) is None else ():
                if tensor.is_floating_point() and tensor.dtype != torch.float32:
                    originals[unit].append((tensor, tensor.data))
                    tensor.data = tensor.data.float()

    def leave(unit: nn.Module, *_: Any) -> None:
        for tensor, stored in originals.pop(unit, ()):
            tensor.data = stored

    units = list(dict.fromkeys(_units(body)))
    hooks = [unit.register_forward_pre_hook(enter) for unit in units]
    hooks += [unit.register_forward_hook(leave, always_call=True) for unit in units]
    with _quantized_products(body):
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for unit in list(originals):
                leave(unit)


@contextmanager
def _quantized_products(model: nn.Module) -> Iterator[None]:
    """Let the 4-bit layers of a model multiply in float32 within the block."""
    formats = {module: dtype for module in model.modules() if (dtype := _compute_dtype(module)) is not None}
    try:
        for module in formats:
            module.compute_dtype = torch.float32  # type: ignore[assignment]
        yield
    finally:
        for module, dtype in formats.items():
            module.compute_dtype = dtype  # type: ignore[assignment]


def _compute_dtype(module: nn.Module) -> torch.dtype | None:
    """The format in which a 4-bit layer multiplies; None for other modules."""
    dtype = vars(module).get("compute_dtype")
    return dtype if isinstance(dtype, torch.dtype) else None


def _units(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of a model, and its modules outside the list of layers."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        elif any(isinstance(part, nn.ModuleList) for part in child.modules()):
            yield from _units(child)
        else:
            yield child
