"""Adapters take their input in the format it comes in, where autocast is about to cast it anyway.

PEFT casts the input of every adapted layer to the adapter's float32, and autocast casts it back: the same numbers, by two copies a
layer, of which the second is kept for the backward pass. Layers that share an input (queries, keys and values) so keep it once.
"""

from __future__ import annotations

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

_cast = BaseTunerLayer._cast_input_dtype  # noqa: SLF001


def _cast_without_autocast(layer: BaseTunerLayer, x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if x is not None and torch.is_autocast_enabled(x.device.type):
        return x
    return _cast(layer, x, dtype)  # type: ignore[no-any-return]


def spare_casts() -> None:
    """Do so in every adapter of this process."""
    BaseTunerLayer._cast_input_dtype = _cast_without_autocast  # noqa: SLF001
