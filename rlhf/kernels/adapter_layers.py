"""LoRA layers with few passes over memory.

    y = x W' + c + s (x A') B'

PEFT multiplies the product with B by the scale s and adds the result to the layer's output: two more tensors
of the output's size, and two more in the backward pass. Here the scale is part of a matrix product and sums
are in place (`addmm_`), rounded once instead of three times. `benchmarks/layers.py` measures the gain.

PEFT also casts the input of every adapted layer to float32, and autocast casts it back: the same values, but
two copies per layer, one of which is kept for the backward pass. Here layers that share an input (queries,
keys, values) keep it once.

Shapes: T tokens, D inputs of a layer, O outputs, R rank.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from rlhf.distributed.zero import is_sharded

FAST_LAYERS = "fast_layers"
"""Attribute of a base model: whether its layers and their adapters use our kernels."""


def enable(model: nn.Module) -> None:
    """Bind these forward passes to the LoRA layers of one model, if its base was loaded with fast layers.

    Call it after adapters are added: PEFT creates a LoRA layer with the first adapter. PEFT's classes stay
    unchanged.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not getattr(base, FAST_LAYERS, False):
        return
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            layer._cast_input_dtype = types.MethodType(_cast_without_autocast, layer)  # noqa: SLF001
        if type(layer) is Linear:  # 4-bit layers have another class and keep its forward
            layer.forward = types.MethodType(adapted_forward, layer)


def without_dropout(model: nn.Module) -> None:
    """Put the layers that have adapters into evaluation mode, so that the adapters drop nothing."""
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.eval()


def _cast_without_autocast(layer: BaseTunerLayer, x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if x is not None and torch.is_autocast_enabled(x.device.type):
        return x
    return BaseTunerLayer._cast_input_dtype(layer, x, dtype)  # type: ignore[no-any-return]  # noqa: SLF001


def adapted_forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The output of a LoRA layer.

    Falls back to PEFT unless it is a frozen linear layer with one plain adapter.
    """
    name = _plain_adapter(layer)
    # DeepSpeed gathers weights only of modules that are called.
    if name is None or args or kwargs or is_sharded(layer):
        return Linear.forward(layer, x, *args, **kwargs)  # type: ignore[no-any-return]
    base = layer.base_layer
    a_RD, b_OR = layer.lora_A[name].weight, layer.lora_B[name].weight
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, a_RD, b_OR = x.to(dtype), a_RD.to(dtype), b_OR.to(dtype)
    if not x.dtype == base.weight.dtype == a_RD.dtype == b_OR.dtype:
        return Linear.forward(layer, x)  # type: ignore[no-any-return]
    scale = layer.scaling[name]
    return _Adapted.apply(x, base.weight, base.bias, a_RD, b_OR, scale)  # type: ignore[no-any-return, no-untyped-call]


def _plain_adapter(layer: Any) -> str | None:
    """The name of the only active adapter, if the layer computes exactly the formula above.

    Otherwise None.
    """
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    base = layer.base_layer
    if len(active) != 1 or layer.disable_adapters or layer.merged:
        return None
    name: str = active[0]
    other = name in layer.lora_variant or layer.lora_bias[name]
    dropout = layer.training and not isinstance(layer.lora_dropout[name], nn.Identity)
    plain = type(base) is nn.Linear and not base.weight.requires_grad
    return name if plain and not (other or dropout) else None


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w_OD: Tensor, c_O: Tensor | None, a_RD: Tensor, b_OR: Tensor, scale: float
    ) -> Tensor:
        low_TR = x.flatten(end_dim=-2) @ a_RD.T
        y = nn.functional.linear(x, w_OD, c_O)
        y.view(-1, y.shape[-1]).addmm_(low_TR, b_OR.T, alpha=scale)
        for_x = (w_OD, a_RD) if ctx.needs_input_grad[0] else (None, None)
        ctx.save_for_backward(x, low_TR, *for_x, b_OR)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, low_TR, w_OD, a_RD, b_OR = ctx.saved_tensors
        d_y_TO = gradients[0].flatten(end_dim=-2)
        d_low_TR = _scaled(d_y_TO, b_OR, ctx.scale)
        needs_x, _, _, needs_a, needs_b, _ = ctx.needs_input_grad
        d_x = (d_y_TO @ w_OD).addmm_(d_low_TR, a_RD).view_as(x) if needs_x else None
        d_a_RD = d_low_TR.T @ x.flatten(end_dim=-2) if needs_a else None
        d_b_OR = _scaled(d_y_TO.T, low_TR, ctx.scale) if needs_b else None
        return d_x, None, None, d_a_RD, d_b_OR, None


def _scaled(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale a b, rounded once."""
    return torch.addmm(a.new_empty(1, 1), a, b, beta=0, alpha=scale)
