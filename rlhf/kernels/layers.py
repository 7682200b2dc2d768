"""Norms, rotary embeddings and gates of Llama-like models, with fewer passes over memory than transformers.

    norm      y = w x / sqrt(mean x^2 + e)
    rotation  y = x cos + rotate_half(x) sin
    gate      y = silu(g) u

With transformers' code, autograd keeps float32 copies of its inputs, allocates a tensor for each negation,
and keeps silu(g), which is as wide as the MLP. Here the gradients are explicit. A norm equals transformers'
bit by bit, and its gradient is summed in float32; a gate and its gradients equal transformers' bit by bit.
`benchmarks/layers.py` measures them on a CPU. Not yet tested on a GPU.

Shapes: T tokens, D units; r = 1 / sqrt(mean x^2 + e).
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation

from rlhf.kernels import adapter_layers, attention, last_layer

NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")
"""Classes of transformers whose forward has the same source as `LlamaRMSNorm`'s; a test compares them."""
GATES = ("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP")
"""Classes of transformers whose forward has the same source as `LlamaMLP`'s."""
ROTATE = "apply_rotary_pos_emb"
ROTATIONS = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose `apply_rotary_pos_emb` has the same source as Llama's."""


def enable(model: PreTrainedModel) -> None:
    """Use our attention, norms, rotations, gates and LoRA layers in one model.

    Forward passes are bound to the modules of this model; classes and functions of transformers stay
    unchanged.
    """
    setattr(model, adapter_layers.FAST_LAYERS, True)
    attention.enable(model)
    last_layer.enable(model)
    ours = dict.fromkeys(NORMS, _norm) | dict.fromkeys(GATES, _mlp)
    rotates = model.config.model_type in ROTATIONS
    for module in model.modules():
        kind = type(module)
        if kind.__name__ in ours:
            module.forward = types.MethodType(ours[kind.__name__], module)
        elif rotates and ROTATE in getattr(kind.forward, "__code__", _norm.__code__).co_names:
            module.forward = types.MethodType(with_rotation(kind.forward, rotated), module)


def disable(model: PreTrainedModel) -> None:
    """Restore transformers' norms, rotations and gates: ours are written for CPUs."""
    for module in model.modules():
        bound = getattr(vars(module).get("forward"), "__func__", None)
        rotates = ROTATE in getattr(type(module).forward, "__code__", _norm.__code__).co_names
        if bound in (_norm, _mlp) or (bound is not None and rotates):
            del module.forward


@functools.cache
def with_rotation(forward: types.FunctionType, rotate: Callable[..., Any]) -> types.FunctionType:
    """The forward pass of an attention class that calls `rotate` in place of `apply_rotary_pos_emb`.

    It is a copy of transformers' function with another global of that name.
    """
    copy = types.FunctionType(
        forward.__code__,
        {**forward.__globals__, ROTATE: rotate},
        forward.__name__,
        forward.__defaults__,
        forward.__closure__,
    )
    copy.__kwdefaults__ = forward.__kwdefaults__
    return copy


def _norm(module: Any, x: Tensor) -> Tensor:
    if module.weight.requires_grad or module.weight.dtype != x.dtype:
        return type(module).forward(module, x)  # type: ignore[no-any-return]
    return rms_norm(x, module.weight, module.variance_epsilon)


def rms_norm(x: Tensor, w_D: Tensor, epsilon: float) -> Tensor:
    """w x / sqrt(mean x^2 + epsilon) over the last axis, summed in float32; w is frozen."""
    return _RMSNorm.apply(x, w_D, epsilon)  # type: ignore[no-any-return, no-untyped-call]


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w_D: Tensor, epsilon: float) -> Tensor:
        x_TD = x.float()
        r_T1 = x_TD.square().mean(-1, keepdim=True).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, w_D, r_T1)
        return (x_TD * r_T1).to(x.dtype).mul_(w_D)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        # n = x r,  d_x = r (g - n mean(n g)),  g = d_y w
        x, w_D, r_T1 = ctx.saved_tensors
        n_TD = x * r_T1
        g_TD = (gradients[0] * w_D).float()
        mean_T1 = torch.linalg.vecdot(n_TD, g_TD).unsqueeze(-1) / n_TD.shape[-1]
        return g_TD.addcmul(n_TD, mean_T1, value=-1).mul_(r_T1).to(x.dtype), None, None


def rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """Queries and keys rotated by their positions, as transformers' `apply_rotary_pos_emb`."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return _Rotation.apply(q, cos, sin), _Rotation.apply(k, cos, sin)  # type: ignore[no-untyped-call]


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        y, half = x * cos, x.shape[-1] // 2
        y[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
        y[..., half:].addcmul_(x[..., :half], sin[..., half:])
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        cos, sin = ctx.saved_tensors
        d_y = gradients[0]
        d_x, half = d_y * cos, d_y.shape[-1] // 2
        d_x[..., :half].addcmul_(d_y[..., half:], sin[..., half:])
        d_x[..., half:].addcmul_(d_y[..., :half], sin[..., :half], value=-1)
        return d_x, None, None


def _mlp(module: Any, x: Tensor) -> Tensor:
    if not isinstance(module.act_fn, (SiLUActivation, nn.SiLU)):
        return type(module).forward(module, x)  # type: ignore[no-any-return]
    return module.down_proj(gated(module.gate_proj(x), module.up_proj(x)))  # type: ignore[no-any-return]


def gated(g: Tensor, u: Tensor) -> Tensor:
    """silu(g) u; only g and u are kept for the backward pass."""
    return _Gate.apply(g, u)  # type: ignore[no-any-return, no-untyped-call]


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, u: Tensor) -> Tensor:
        ctx.save_for_backward(g, u)
        return functional.silu(g).mul_(u)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        # d_u = d_y silu(g),  d_g = d_y u silu'(g)
        g, u = ctx.saved_tensors
        d_y = gradients[0]
        d_g = d_y * u
        torch.ops.aten.silu_backward.grad_input(d_g, g, grad_input=d_g)
        return d_g, functional.silu(g).mul_(d_y)
