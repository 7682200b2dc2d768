"""The number format a base is computed in: the one its config asks for, unless the processor only emulates its products.

Processors without AVX512 (most laptops) or ARM's bfloat16 multiply bfloat16 in software, on two cores of an AMD EPYC
7003 at a sixth of float32's speed (`benchmarks/products.py`). There a base that is stored in bfloat16 is computed in float32: the same weights, twice
their memory, and numbers that are rounded less.
"""

from __future__ import annotations

import functools
import os
import sys
from typing import Any

import torch

from rlhf.core.errors import ModelError

COMPUTE_DTYPE = "computed_in"
"""The attribute of a model whose weights are kept in another format than its products are in."""
NOTE = "This processor only emulates bfloat16: the base is computed in float32, which is much faster and takes more memory."


def effective_dtype(dtype: str) -> str:
    """`float32` for `bfloat16` where this machine has neither a card nor a processor that multiplies it; else `dtype`."""
    return "float32" if dtype == "bfloat16" and emulates_bfloat16() else dtype


def announce_dtype(dtype: str) -> str:
    """`effective_dtype`, and one line on the terminal where that is another format than the config names.

    Raises:
        ModelError: bfloat16 on a GPU that has none.
    """
    require_bfloat16(dtype)
    computed = effective_dtype(dtype)
    if computed != dtype:
        _say_once()
    return computed


def compute_dtype(model: Any) -> torch.dtype:
    """The format a model's products are in: its weights' own, unless these are kept in another for the sake of training."""
    return getattr(model, COMPUTE_DTYPE, model.dtype)  # type: ignore[no-any-return]


@functools.cache
def emulates_bfloat16() -> bool:
    """Whether bfloat16 is multiplied in software here: by torch's own rule, which product it calls."""
    return not torch.cuda.is_available() and not torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001


def require_bfloat16(dtype: str) -> None:
    """Make sure that the GPU, where there is one, multiplies the format that a config names.

    Raises:
        ModelError: bfloat16, and the GPU is older than Ampere (compute capability 8.0): V100, T4, RTX 20.
    """
    if dtype != "bfloat16" or not torch.cuda.is_available():
        return
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        raise ModelError(
            f"model.dtype is bfloat16, and {torch.cuda.get_device_name()} (compute capability {major}.{minor}) has none.",
            allowed="float32 on this GPU, or a GPU of compute capability 8.0 (Ampere) or later; float16 is not supported",
            fix="model.dtype=float32",
        )


@functools.cache
def _say_once() -> None:
    if os.environ.get("RANK", "0") == "0":  # once, not once a process
        print(NOTE, file=sys.stderr, flush=True)
