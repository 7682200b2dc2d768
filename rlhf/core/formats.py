"""The dtype a base is computed in: that of its config, unless the CPU is slower in it than in float32.

CPUs without AVX512 (most laptops) or ARM's bfloat16 multiply bfloat16 in software: on two cores of an AMD
EPYC 7003 at a sixth of float32's speed (`benchmarks/products.py`). Intel's CPUs need AMX, which many virtual
machines hide: with AVX512's instruction alone, bfloat16 reaches about half of float32's speed. There a
bfloat16 base is computed in float32: the same weights in twice the memory, with smaller rounding errors.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Any

import torch

from rlhf.core.errors import ModelError

COMPUTE_DTYPE = "computed_in"
"""Attribute of a model whose matrix products have another dtype than its weights."""
NOTE = "bfloat16 is slow on this CPU: the base is computed in float32, which is faster and takes more memory."


def effective_dtype(dtype: str) -> str:
    """`float32` in place of `bfloat16` on a CPU that is slower in bfloat16; else `dtype`."""
    return "float32" if dtype == "bfloat16" and slow_bfloat16() else dtype


def announce_dtype(dtype: str) -> str:
    """`effective_dtype`, with a note on stderr if it differs from the config.

    Raises:
        ModelError: bfloat16 on a GPU without it.
    """
    require_bfloat16(dtype)
    computed = effective_dtype(dtype)
    if computed != dtype:
        _print_note()
    return computed


def compute_dtype(model: Any) -> torch.dtype:
    """The dtype of a model's matrix products: that of its weights, unless these are stored in another for
    training."""
    return getattr(model, COMPUTE_DTYPE, model.dtype)  # type: ignore[no-any-return]


@functools.cache
def slow_bfloat16() -> bool:
    """Whether there is no GPU and the CPU multiplies bfloat16 in software, or is Intel's and lacks AMX.

    The rule looks at features, not at a measurement, so that a resumed run computes in the same dtype.
    """
    if torch.cuda.is_available():
        return False
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():  # noqa: SLF001
        return True
    return _is_intel() and not torch.cpu._is_amx_tile_supported()  # noqa: SLF001


def _is_intel() -> bool:
    """Whether the CPU is Intel's, as Linux reports it; elsewhere False."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return False


def require_bfloat16(dtype: str) -> None:
    """Check that the GPU, if there is one, supports the dtype of a config.

    Raises:
        ModelError: bfloat16 on a GPU older than Ampere (compute capability 8.0): V100, T4, RTX 20.
    """
    if dtype != "bfloat16" or not torch.cuda.is_available():
        return
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        raise ModelError(
            f"The format is bfloat16, which {torch.cuda.get_device_name()} (compute capability "
            f"{major}.{minor}) lacks.",
            allowed="float32 on this GPU, or a GPU of compute capability 8.0 (Ampere) or later; float16 is "
            "not supported",
            fix="model.dtype=float32; a command that has no such key: export CUDA_VISIBLE_DEVICES= (the CPU)",
        )


@functools.cache
def _print_note() -> None:
    if os.environ.get("RANK", "0") == "0":  # once, not once per process
        print(NOTE, file=sys.stderr, flush=True)
