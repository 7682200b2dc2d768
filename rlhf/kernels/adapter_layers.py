"""What an adapted layer computes, in as few passes over memory as it takes.

    y = x W' + c + s (x A') B'

PEFT multiplies what B gives by the scale s and adds that to the layer's output: two more tensors as large as the output, and as many in
the backward pass. Here the scale goes into a product, and every sum is made where it lies (`addmm_`). Rounded once in place of three
times, the numbers are as good or better. Where matrix products are fast, such passes are a large part of a step: `benchmarks/layers.py`.

PEFT also casts the input of every adapted layer to the adapter's float32, and autocast casts it back: the same numbers, by two copies a
layer, of which the second is kept for the backward pass. Here layers that share an input (queries, keys and values) keep it once.

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
"""The attribute of a base model whose layers, and the adapters on them, compute by our kernels."""


def enable(model: nn.Module) -> None:
    """Bind these forward passes to the adapted layers of one model, if its base was loaded with fast layers.

    Call it after adapters are added: PEFT creates an adapted layer with the first adapter at its place. The classes
    stay PEFT's own.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not getattr(base, FAST_LAYERS, False):
        return
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            layer._cast_input_dtype = types.MethodType(_cast_without_autocast, layer)  # noqa: SLF001
        if type(layer) is Linear:  # 4-bit layers have a class of their own, and keep its forward pass
            layer.forward = types.MethodType(adapted_forward, layer)


def _cast_without_autocast(layer: BaseTunerLayer, x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if x is not None and torch.is_autocast_enabled(x.device.type):
        return x
    return BaseTunerLayer._cast_input_dtype(layer, x, dtype)  # type: ignore[no-any-return]  # noqa: SLF001


def adapted_forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The output of an adapted layer; by PEFT unless it is one frozen product and one plain adapter."""
    name = _plain_adapter(layer)
    # DeepSpeed gathers the weights of modules that are called, and of no others.
    if name is None or args or kwargs or is_sharded(layer):
        return Linear.forward(layer, x, *args, **kwargs)  # type: ignore[no-any-return]
    base = layer.base_layer
    a_RD, b_OR = layer.lora_A[name].weight, layer.lora_B[name].weight
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, a_RD, b_OR = x.to(dtype), a_RD.to(dtype), b_OR.to(dtype)
    if not x.dtype == base.weight.dtype == a_RD.dtype == b_OR.dtype:
        return Linear.forward(layer, x)  # type: ignore[no-any-return]
    return _Adapted.apply(x, base.weight, base.bias, a_RD, b_OR, layer.scaling[name])  # type: ignore[no-any-return, no-untyped-call]


def _plain_adapter(layer: Any) -> str | None:
    """The name of the one active adapter of a layer, if the layer computes the formula above and no more."""
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
        of_x, _, _, of_a, of_b, _ = ctx.needs_input_grad
        d_x = (d_y_TO @ w_OD).addmm_(d_low_TR, a_RD).view_as(x) if of_x else None
        d_a_RD = d_low_TR.T @ x.flatten(end_dim=-2) if of_a else None
        d_b_OR = _scaled(d_y_TO.T, low_TR, ctx.scale) if of_b else None
        return d_x, None, None, d_a_RD, d_b_OR, None


def _scaled(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale a b, rounded once."""
    return torch.addmm(a.new_empty(1, 1), a, b, beta=0, alpha=scale)
