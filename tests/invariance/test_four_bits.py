"""A 4-bit base has the same outputs and gradients before and after evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.models.loading import load_causal, lora_config, with_adapter

IDS = torch.tensor([[5, 600, 7000, 8, 900]])


def build(base: Path) -> Any:
    model = with_adapter(
        load_causal(str(base), revision=None, dtype="float32", quantization="nf4"),
        lora_config(rank=4, alpha=8, dropout=0.0, targets="all-linear"),
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.1, generator=generator))
    return model


def gradients(model: Any) -> dict[str, Tensor]:
    model.train()
    model.zero_grad()
    model(IDS, labels=IDS).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_the_gradient_after_an_evaluation_is_the_one_before(tiny_base: Path, context: Any) -> None:
    model = build(tiny_base)
    before = gradients(model)
    model.eval()
    with context():
        model(IDS)
    after = gradients(model)
    assert before.keys() == after.keys()
    for name, gradient in before.items():
        assert torch.allclose(after[name], gradient, rtol=1e-5, atol=1e-6), name


def test_a_4_bit_layer_passes_the_gradient_of_its_own_weight_on(tiny_base: Path) -> None:
    """A layer's input gradient equals that of its dequantized weight, also after evaluation."""
    import bitsandbytes.functional as F

    model = build(tiny_base)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    weight = F.dequantize_4bit(layer.weight.data.clone(), layer.weight.quant_state).float()
    model.eval()
    with torch.no_grad():
        model(IDS)
    x = torch.randn(3, 64, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, weight.sum(dim=0).expand(3, -1), atol=1e-4)


def test_logits_do_not_depend_on_the_mode(tiny_base: Path) -> None:
    model = build(tiny_base)
    with torch.no_grad():
        training, evaluating = model.train()(IDS).logits, model.eval()(IDS).logits
    assert torch.allclose(training, evaluating, atol=1e-4)
