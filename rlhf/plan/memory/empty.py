"""The models of a run as fake tensors.

PEFT cannot build inside a FakeTensorMode, and bitsandbytes cannot quantize a fake tensor. So the model is
built on the meta device, then each parameter and buffer is replaced by a fake one of its final shape and
dtype.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig
from transformers.integrations import replace_with_bnb_linear

from rlhf.kernels import layers
from rlhf.models.names import HEAD

BLOCK, NESTED_BLOCK = 64, 256  # weights that share a scale, and scales that share one; bitsandbytes' defaults


def empty_base(shape: Any, *, attributes: list[str] | None, dtype: str, quantization: str) -> Any:
    """The frozen base on the meta device: a classifier of `attributes`, or a causal language model.

    Args:
        shape: a transformers config.
    """
    extra: dict[str, Any] = {"attn_implementation": "sdpa", "dtype": getattr(torch, dtype)}
    with torch.device("meta"):
        if attributes is None:
            model = AutoModelForCausalLM.from_config(shape, **extra)
        else:
            shape.num_labels = len(attributes)
            model = AutoModelForSequenceClassification.from_config(shape, **extra)
    layers.enable(model)
    if quantization == "nf4":
        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=getattr(torch, dtype),
            bnb_4bit_use_double_quant=True,
        )
        replace_with_bnb_linear(model, ["lm_head", HEAD], settings)
        model.is_loaded_in_4bit = True
    return model.requires_grad_(False)


def without_data(model: nn.Module, mode: FakeTensorMode) -> None:
    """Replace parameters and buffers by fake tensors on the CPU; tied weights stay tied, 4-bit weights are
    packed."""
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            with mode:
                made[id(tensor)] = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        return made[id(tensor)]

    for module in model.modules():
        if isinstance(module, Linear4bit):
            with mode:
                pack_weight(module)
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.device.type == "meta":
                setattr(module, name, nn.Parameter(fake(parameter), parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, fake(buffer))


def pack_weight(layer: Linear4bit) -> None:
    """Pack a layer's weight as bitsandbytes: two weights a byte, 8-bit scales, 32-bit scales of the
    scales.
    """
    weights = layer.in_features * layer.out_features
    scales = -(-weights // BLOCK)
    state = QuantState(
        absmax=torch.empty(scales, dtype=torch.uint8),
        shape=torch.Size((layer.out_features, layer.in_features)),
        code=torch.empty(16),
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=layer.compute_dtype,
        offset=torch.empty(()),
        state2=QuantState(
            absmax=torch.empty(-(-scales // NESTED_BLOCK)),
            blocksize=NESTED_BLOCK,
            code=torch.empty(256),
            dtype=torch.float32,
        ),
    )
    packed: Any = nn.Parameter(torch.empty((weights + 1) // 2, 1, dtype=torch.uint8), requires_grad=False)
    packed.quant_state, packed.compress_statistics, packed.quant_type = state, True, "nf4"
    layer.weight = packed


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers and scales of 4-bit weights by name; a tied tensor appears once."""
    tensors: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for place, layer in model.named_modules():
        if isinstance(layer, Linear4bit):
            state = layer.weight.quant_state
            scales = (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
            tensors |= {f"{place}.scale.{number}": scale for number, scale in enumerate(scales)}
    return tensors
