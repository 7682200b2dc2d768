"""Triton kernels of the Liger library for norms, rotations and gates of one model on a GPU.

They take the place of our own layers, which are made for CPUs. Liger's functions change the model that they are given and, beside
it, classes and functions of its module in transformers: the latter are put back. Losses are not Liger's: ours read few tokens.
Not yet tested on a GPU; tests replace the library by a module that records its calls.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from typing import Any, Literal

from transformers import PreTrainedModel

from rlhf.core.errors import ConfigError
from rlhf.kernels import layers

Wanted = Literal["auto"] | bool
LIBRARY = "liger_kernel"
PARTS = {"rms_norm": True, "swiglu": True, "geglu": True, "layer_norm": True}
"""Which kernels are applied; functions of Liger take those that their model has."""
LEFT = {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}
"""Applied otherwise, or not at all."""


def choose_layers(model: PreTrainedModel, wanted: Wanted) -> bool:
    """Layers that fit the device a model is on; returns whether fused kernels are applied.

    Args:
        wanted: `model.fused_kernels` of the config; `auto` is on a GPU where the library is installed.

    Raises:
        ConfigError: they are wanted, and there is no GPU or no library.
    """
    on_gpu, installed = model.device.type == "cuda", importlib.util.find_spec(LIBRARY) is not None
    if wanted is True and not (on_gpu and installed):
        found = "the model is on a CPU" if not on_gpu else "the package liger-kernel is not installed"
        raise ConfigError(
            f"model.fused_kernels is true, but {found}.",
            allowed="true on an NVIDIA GPU with liger-kernel installed; `auto`, which takes what is there; false",
            fix="model.fused_kernels=auto" if not on_gpu else "pip install liger-kernel",
        )
    if on_gpu:
        layers.disable(model)
    if wanted is False or not (on_gpu and installed):
        return False
    apply(model)
    return True


def apply(model: PreTrainedModel) -> None:
    """Bind Liger's kernels to the modules of this model, and to nothing else."""
    patch = importlib.import_module(f"{LIBRARY}.transformers.monkey_patch")
    rope = importlib.import_module(f"{LIBRARY}.transformers.rope")
    module = sys.modules[type(model).__module__]
    before: dict[str, Any] = dict(vars(module))
    try:
        patch._apply_liger_kernel_to_instance(model=model, **PARTS, **LEFT)  # noqa: SLF001
    finally:
        vars(module).update(before)
    if model.config.model_type not in layers.ROTATIONS:
        return
    for part in model.modules():
        forward = type(part).forward
        if layers.ROTATE in getattr(forward, "__code__", apply.__code__).co_names:
            copy = layers.with_rotation(forward, rope.liger_rotary_pos_emb)
            part.forward = types.MethodType(copy, part)
