"""Our norms, rotations and gates equal transformers'."""

from __future__ import annotations

import importlib
import inspect
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama

from rlhf.kernels import layers
from rlhf.models.loading import load_causal

STOCK_ROTATION = modeling_llama.apply_rotary_pos_emb
FORMATS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def body(function: Any) -> str:
    """A function's source without its first line, whose annotations may differ."""
    return inspect.getsource(function).partition("\n")[2]


@pytest.mark.parametrize("kind", layers.ROTATIONS)
def test_listed_models_have_llamas_source(kind: str) -> None:
    module = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    for names, llamas in (
        (layers.NORMS, modeling_llama.LlamaRMSNorm),
        (layers.GATES, modeling_llama.LlamaMLP),
    ):
        kind_class = next(getattr(module, name) for name in names if hasattr(module, name))
        assert body(kind_class.forward) == body(llamas.forward)
    source, llama = Path(module.__file__).read_text(), Path(modeling_llama.__file__).read_text()
    assert _rotation(source) == _rotation(llama)


def _rotation(source: str) -> str:
    start = source.index("    cos = cos.unsqueeze(unsqueeze_dim)")
    return source[start : source.index("return q_embed, k_embed", start)]


@FORMATS
def test_a_norm_equals_transformers(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = modeling_llama.LlamaRMSNorm(32).to(dtype).requires_grad_(False)
    norm.weight.copy_(torch.randn(32))
    stock = type(norm).forward
    x, d_y = torch.randn(2, 5, 32).to(dtype), torch.randn(2, 5, 32).to(dtype)
    theirs, d_theirs = _with_gradient(lambda x: stock(norm, x), x, d_y)
    ours, d_ours = _with_gradient(lambda x: layers.rms_norm(x, norm.weight, norm.variance_epsilon), x, d_y)
    assert torch.equal(ours, theirs)
    assert _relative_difference(d_ours, d_theirs) < (1e-6 if dtype == torch.float32 else 1e-2)


def test_gradient_of_a_norm_equals_autograds() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(3, 8, dtype=torch.float64, requires_grad=True), torch.randn(8, dtype=torch.float64)
    d_y = torch.randn(3, 8, dtype=torch.float64)
    (w * x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt()).backward(d_y)
    single, weight = x.detach().float().requires_grad_(), w.float()
    layers.rms_norm(single, weight, 0.1).backward(d_y.float())
    assert single.grad is not None
    assert x.grad is not None
    assert _relative_difference(single.grad, x.grad) < 1e-6


@FORMATS
def test_a_rotation_equals_transformers(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 5, 4, 16).to(dtype), torch.randn(2, 5, 2, 16).to(dtype)
    cos, sin = torch.randn(2, 5, 16).to(dtype), torch.randn(2, 5, 16).to(dtype)
    for which, x in enumerate((q, k)):
        d_y = torch.randn(2, x.shape[2], 5, 16).to(dtype)
        results = [
            _with_gradient(partial(_rotate, rotation, which, cos, sin), x, d_y)
            for rotation in (layers.rotated, STOCK_ROTATION)
        ]
        close = 1e-6 if dtype == torch.float32 else 2e-2
        assert _relative_difference(results[0][0], results[1][0]) < close
        assert _relative_difference(results[0][1], results[1][1]) < close


@FORMATS
def test_a_gate_and_its_gradients_equal_transformers_bit_by_bit(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    mlp = _mlp("silu").to(dtype)
    x, d_y = (3 * torch.randn(2, 5, 8)).to(dtype), torch.randn(2, 5, 8).to(dtype)
    results = [
        _with_gradient(partial(forward, mlp), x, d_y)
        for forward in (layers._mlp, modeling_llama.LlamaMLP.forward)
    ]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


def test_gradients_of_a_gate_equal_finite_differences() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(7, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(layers.gated, inputs)


def test_a_gate_keeps_only_its_two_inputs() -> None:
    g, u = torch.randn(2, 7, requires_grad=True).unbind()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
    ):
        layers.gated(g, u)
    assert [tensor.data_ptr() for tensor in kept] == [g.data_ptr(), u.data_ptr()]


def test_an_mlp_with_another_activation_uses_transformers_forward() -> None:
    mlp, x = _mlp("gelu"), torch.randn(2, 5, 8)
    assert torch.equal(layers._mlp(mlp, x), mlp(x))


def _mlp(activation: str) -> Any:
    shape = modeling_llama.LlamaConfig(
        hidden_size=8, num_attention_heads=2, intermediate_size=12, hidden_act=activation
    )
    return modeling_llama.LlamaMLP(shape)


def test_only_frozen_weights_of_the_inputs_dtype_use_our_norm(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_causal(str(tiny_base), revision=None, dtype="float32", quantization="none")
    norm = next(module for module in model.modules() if type(module).__name__ == "LlamaRMSNorm")
    seen: list[str] = []
    monkeypatch.setattr(layers, "rms_norm", lambda x, *_: seen.append("ours") or x)
    monkeypatch.setattr(type(norm), "forward", lambda _, x: seen.append("theirs") or x)
    norm(torch.zeros(1, 64))
    norm(torch.zeros(1, 64, dtype=torch.bfloat16))  # a float32 weight gives a float32 result
    norm.weight.requires_grad_(True)
    norm(torch.zeros(1, 64))
    assert seen == ["ours", "theirs", "theirs"]


def test_only_the_loaded_model_uses_our_layers(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes and functions of transformers stay unchanged, and transformers' own models use them."""
    kinds = (modeling_llama.LlamaRMSNorm, modeling_llama.LlamaMLP, modeling_llama.LlamaAttention)
    before = [kind.forward for kind in kinds], modeling_llama.apply_rotary_pos_emb
    ours = load_causal(str(tiny_base), revision=None, dtype="float32", quantization="none")
    assert ([kind.forward for kind in kinds], modeling_llama.apply_rotary_pos_emb) == before
    theirs = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    slow = load_causal(str(tiny_base), revision=None, dtype="float32", quantization="none", fast_layers=False)
    for model, bound in ((ours, 2 * (1 + 1 + 2) + 1 + 1), (theirs, 0), (slow, 0)):
        assert sum("forward" in vars(module) for module in model.modules()) == bound
    calls: list[str] = []
    monkeypatch.setattr(layers._Rotation, "apply", lambda x, *_: calls.append("rotation") or x)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        expected = theirs(ids).logits
        assert torch.equal(slow(ids).logits, expected)
        assert not calls
        ours(ids)
    assert len(calls) == 2 * 2  # queries and keys of two layers


def _rotate(rotation: Any, which: int, cos: Tensor, sin: Tensor, x: Tensor) -> Tensor:
    return rotation(x.transpose(1, 2), x.transpose(1, 2), cos, sin)[which]


def _with_gradient(function: Any, x: Tensor, d_y: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    y = function(leaf)
    y.backward(d_y)
    assert torch.equal(leaf.detach(), x)
    assert leaf.grad is not None
    return y.detach(), leaf.grad


def _relative_difference(ours: Tensor, expected: Tensor) -> float:
    return ((ours.double() - expected.double()).norm() / expected.double().norm()).item()
