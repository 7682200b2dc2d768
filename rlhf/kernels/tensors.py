"""Segment sums and means over answers of unequal length; copies to and from a GPU that seldom wait for it.

Shapes: M tokens of all answers of a batch, concatenated; N answers; `answer_M` is the index of a token's
answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def segment_sum(values_M: Tensor, answer_M: Tensor, answers: int) -> Tensor:
    """sum_N[n] = sum of values over the tokens of answer n; 0 for an answer without tokens."""
    if values_M.shape != answer_M.shape:
        raise ValueError(f"shapes must be equal, got {tuple(values_M.shape)} and {tuple(answer_M.shape)}")
    return values_M.new_zeros(answers).index_add(0, answer_M, values_M)


def segment_mean(values_M: Tensor, answer_M: Tensor, answers: int) -> Tensor:
    """mean_N[n] = mean of values over the tokens of answer n; 0 for an answer without tokens."""
    counts_N = segment_sum(values_M.new_ones(values_M.shape), answer_M, answers)
    return segment_sum(values_M, answer_M, answers) / counts_N.clamp(min=1)


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the CPU on `device`, from pinned memory: a copy from other memory waits for the GPU.

    The caching host allocator keeps the pinned copy until the transfer is done. Source: torch's tutorial
    "A guide on good usage of non_blocking and pin_memory() in PyTorch".
    """
    device = torch.device(device)
    if tensor.device.type != "cpu" or device.type == "cpu":
        return tensor.to(device)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def to_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors on the CPU, in one transfer, since each one waits for the device.

    They pass through float64, which is exact for floats and for integers below 2^53.
    """
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return list(tensors)
    flat = torch.cat([tensor.detach().flatten().double() for tensor in tensors]).cpu()
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [part.to(tensor.dtype).view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def read_numbers(values: Sequence[Tensor | float]) -> list[float]:
    """The values as Python numbers; tensors of one element are read in one transfer."""
    read = iter(to_cpu([value for value in values if isinstance(value, Tensor)]))
    return [float(next(read) if isinstance(value, Tensor) else value) for value in values]
