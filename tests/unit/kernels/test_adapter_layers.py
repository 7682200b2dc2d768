"""LoRA layers with in-place sums equal PEFT's, and keep fewer tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora.layer import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from rlhf.kernels import adapter_layers
from rlhf.models.loading import autocast, load_causal, lora_config, with_adapter

IDS = torch.tensor([[5, 600, 7000, 8, 900]])


def adapted_model(
    base: Path, quantization: str, dtype: str, dropout: float = 0.0, *, by_peft: bool = False
) -> Any:
    """A base with a random adapter; `by_peft`: our kernels everywhere except in the LoRA layers."""
    causal = load_causal(str(base), revision=None, dtype=dtype, quantization=quantization)
    setattr(causal, adapter_layers.FAST_LAYERS, not by_peft)
    model = with_adapter(
        causal,
        lora_config(rank=4, alpha=8, dropout=dropout, targets="all-linear"),
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.1, generator=generator))
    return model


QUANTIZATIONS = pytest.mark.parametrize("quantization", ["none", "nf4"])


def step(model: Any) -> tuple[dict[str, Tensor], int]:
    """Logits and gradients, and the bytes kept for the backward pass."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(model):
        logits = model(IDS).logits
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    logits.float().square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {**gradients, "logits": logits.detach()}, size


def largest_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest difference of two steps, relative to the largest entry of its tensor."""
    assert ours.keys() == theirs.keys()
    assert len(ours) > 10
    return max(
        ((ours[name] - value).abs().max() / value.abs().max().clamp(min=1e-30)).item()
        for name, value in theirs.items()
    )


def test_float32_results_equal_pefts(tiny_base: Path) -> None:
    ours, _ = step(adapted_model(tiny_base, "none", "float32"))
    theirs, _ = step(adapted_model(tiny_base, "none", "float32", by_peft=True))
    assert largest_difference(ours, theirs) < 2e-6


def test_pefts_classes_stay_unchanged(tiny_base: Path) -> None:
    before = Linear.forward, BaseTunerLayer._cast_input_dtype
    model = adapted_model(tiny_base, "none", "float32")
    assert (Linear.forward, BaseTunerLayer._cast_input_dtype) == before
    bound = [layer for layer in model.modules() if "forward" in vars(layer) and isinstance(layer, Linear)]
    assert len(bound) == 2 * 7
    other = adapted_model(tiny_base, "none", "float32", by_peft=True)
    assert not any("forward" in vars(layer) for layer in other.modules() if isinstance(layer, Linear))


@pytest.mark.parametrize(("tokens", "inputs", "outputs"), [(5, 64, 128), (37, 192, 64), (300, 64, 192)])
def test_bfloat16_results_are_closer_to_float64_than_pefts(tokens: int, inputs: int, outputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w, a, b, d_y = (
        torch.randn(*shape, generator=generator).div(shape[-1] ** 0.5).bfloat16()
        for shape in ((tokens, inputs), (outputs, inputs), (4, inputs), (outputs, 4), (tokens, outputs))
    )

    def layer(forward: Any, dtype: torch.dtype) -> list[Tensor]:
        leaves = [leaf.to(dtype, copy=True).requires_grad_() for leaf in (x, a, b)]
        y = forward(leaves[0], w.to(dtype), *leaves[1:])
        y.backward(d_y.to(dtype))
        return [y.detach(), *(leaf.grad for leaf in leaves)]

    def as_peft(x: Tensor, w: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return x @ w.T + x @ a.T @ b.T * 2.0

    def as_ours(x: Tensor, w: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return adapter_layers._Adapted.apply(x, w, None, a, b, 2.0)

    truth = layer(as_peft, torch.float64)
    for ours, theirs, value in zip(
        layer(as_ours, torch.bfloat16), layer(as_peft, torch.bfloat16), truth, strict=True
    ):
        error, peft_error = ((y.double() - value).norm() / value.norm() for y in (ours, theirs))
        assert error <= peft_error < 4e-3


@QUANTIZATIONS
def test_fewer_bytes_are_kept_for_the_backward_pass(
    tiny_base: Path, quantization: str, as_configured: None
) -> None:
    _, size = step(adapted_model(tiny_base, quantization, "bfloat16"))
    _, before = step(adapted_model(tiny_base, quantization, "bfloat16", by_peft=True))
    # In each of two layers: the shared input of queries, keys and values is kept once instead of three times,
    # that of gate and up once instead of twice, and the output of attention, which is kept anyway, is the
    # next layer's input.
    assert before - size == 2 * (2 + 1 + 1) * IDS.numel() * 64 * 2


def test_4_bit_layers_use_pefts_forward(tiny_base: Path) -> None:
    ours, _ = step(adapted_model(tiny_base, "nf4", "bfloat16"))
    theirs, _ = step(adapted_model(tiny_base, "nf4", "bfloat16", by_peft=True))
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


def test_anything_but_one_plain_adapter_uses_pefts_forward(tiny_base: Path) -> None:
    model = adapted_model(tiny_base, "none", "float32", dropout=0.5)
    layer = next(module for module in model.modules() if isinstance(module, Linear))
    assert adapter_layers._plain_adapter(layer) is None  # dropout
    model.eval()
    assert adapter_layers._plain_adapter(layer) == "default"
    with model.disable_adapter():
        assert adapter_layers._plain_adapter(layer) is None
    model.add_adapter("second", lora_config(rank=2, alpha=4, dropout=0.0, targets="all-linear"))
    model.base_model.set_adapter(["default", "second"])
    assert adapter_layers._plain_adapter(layer) is None  # two at once
    model.set_adapter("second")
    assert adapter_layers._plain_adapter(layer) == "second"
    layer.base_layer.weight.requires_grad_(True)
    assert adapter_layers._plain_adapter(layer) is None  # only PEFT's forward gives it a gradient


def test_inputs_are_not_changed_in_place(tiny_base: Path) -> None:
    """In-place sums must not change tensors that other layers read."""
    model = adapted_model(tiny_base, "none", "float32")
    layer = next(module for module in model.modules() if isinstance(module, Linear))
    x = torch.randn(2, 3, layer.in_features, requires_grad=True)
    before, weight = x.detach().clone(), layer.base_layer.weight.clone()
    gradient = torch.randn(2, 3, layer.out_features)
    gradient_before = gradient.clone()
    layer(x).backward(gradient)
    for now, original in ((x, before), (layer.base_layer.weight, weight), (gradient, gradient_before)):
        assert torch.equal(now.detach(), original)


@QUANTIZATIONS
def test_without_autocast_peft_casts_its_input(
    tiny_base: Path, quantization: str, as_configured: None
) -> None:
    """A bfloat16 product with a float32 adapter would be an error."""
    model = adapted_model(tiny_base, quantization, "bfloat16")
    with torch.no_grad():
        assert torch.isfinite(model(IDS).logits).all()
