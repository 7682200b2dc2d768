"""Triton kernels of the Liger library for norms, rotations and gates of one model on a GPU.

They replace our own layers, which are written for CPUs. Liger's functions patch the model and also classes
and functions of its transformers module; the latter are restored. Liger's losses are not used: ours need the
logits of few tokens. Not yet tested on a GPU; tests replace the library by a module that records its calls.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from typing import Any, Literal

from transformers import PreTrainedModel

from rlhf.core.errors import ConfigError
from rlhf.distributed.sharding import compute_device
from rlhf.kernels import layers

Wanted = Literal["auto"] | bool
LIBRARY = "liger_kernel"
APPLIED = {"rms_norm": True, "swiglu": True, "geglu": True, "layer_norm": True}
"""Kernels that are applied; Liger ignores those that a model does not have."""
NOT_APPLIED = {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}
"""Kernels that are applied below (rope) or not at all."""


def choose_layers(model: PreTrainedModel, wanted: Wanted) -> bool:
    """Choose the layers for the device that the model computes on; return whether fused kernels are applied.

    Args:
        wanted: `model.fused_kernels` of the config; `auto`: true on a GPU if the library is installed.

    Raises:
        ConfigError: `wanted` is true, and there is no GPU or no library.
    """
    # A base that FSDP2 will shard is still in host memory.
    on_gpu, installed = compute_device(model).type == "cuda", importlib.util.find_spec(LIBRARY) is not None
    if wanted is True and not (on_gpu and installed):
        reason = "there is no GPU" if not on_gpu else "the package liger-kernel is not installed"
        raise ConfigError(
            f"model.fused_kernels is true, but {reason}.",
            allowed="true on an NVIDIA GPU with liger-kernel installed; auto; false",
            fix="model.fused_kernels=auto" if not on_gpu else "pip install liger-kernel",
        )
    if on_gpu:
        layers.disable(model)
    if wanted is False or not (on_gpu and installed):
        return False
    apply(model)
    return True


def apply(model: PreTrainedModel) -> None:
    """Bind Liger's kernels to the modules of this model only."""
    patch = importlib.import_module(f"{LIBRARY}.transformers.monkey_patch")
    rope = importlib.import_module(f"{LIBRARY}.transformers.rope")
    module = sys.modules[type(model).__module__]
    before: dict[str, Any] = dict(vars(module))
    try:
        patch._apply_liger_kernel_to_instance(model=model, **APPLIED, **NOT_APPLIED)  # noqa: SLF001
    finally:
        vars(module).update(before)
    if model.config.model_type not in layers.ROTATIONS:
        return
    for layer in model.modules():
        forward = type(layer).forward
        if layers.ROTATE in getattr(forward, "__code__", apply.__code__).co_names:
            copy = layers.with_rotation(forward, rope.liger_rotary_pos_emb)
            layer.forward = types.MethodType(copy, layer)
