"""Norms, rotations and gates of Llama-like models, in fewer passes over memory than transformers makes.

    norm      y = w x / sqrt(mean x^2 + e)
    rotation  y = x cos + rotate_half(x) sin
    gate      y = silu(g) u

Written as transformers has them, autograd keeps float32 copies of what it needs, makes a tensor for every sign, and keeps silu(g), as wide as an
MLP is. Here the formula of the gradient is written down. A norm is transformers' own to the last bit, with gradients that sum in float32; a gate is
so with its gradients. `benchmarks/layers.py` measures it on a CPU; on GPUs, where memory is spared too, it was not run by us.

Shapes: T tokens, D units, r one over the root.
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
"""Classes of transformers whose forward is that of `LlamaRMSNorm`, word for word: a test reads them."""
GATES = ("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP")
"""Classes of transformers whose forward is that of `LlamaMLP`, word for word."""
ROTATE = "apply_rotary_pos_emb"
ROTATIONS = ("llama", "mistral", "qwen2", "qwen3")
"""Kinds of models whose `apply_rotary_pos_emb` is Llama's, word for word."""


def enable(model: PreTrainedModel) -> None:
    """Let one model compute by our attention, norms, rotations and gates, and adapters on it by our adapted layers.

    Forward passes are bound to the modules of this model; classes and functions of transformers stay as they are.
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
    """Give norms, rotations and gates back to transformers: what is here is made for CPUs."""
    for module in model.modules():
        bound = getattr(vars(module).get("forward"), "__func__", None)
        rotates = ROTATE in getattr(type(module).forward, "__code__", _norm.__code__).co_names
        if bound in (_norm, _mlp) or (bound is not None and rotates):
            del module.forward


@functools.cache
def with_rotation(forward: types.FunctionType, rotate: Callable[..., Any]) -> types.FunctionType:
    """The forward pass of an attention class, calling `rotate` where it calls `apply_rotary_pos_emb`.

    The code is transformers' own; the function is a copy that sees another global of that name.
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
    """silu(g) u; of the two, nothing else is kept for the gradient."""
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
