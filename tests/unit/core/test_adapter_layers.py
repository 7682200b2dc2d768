"""Sparing PEFT's casts changes no number, and keeps less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from rlhf.core import adapter_inputs
from rlhf.core.models import autocast, load_causal, lora_config, with_adapter

IDS = torch.tensor([[5, 600, 7000, 8, 900]])


@pytest.fixture(params=["none", "nf4"])
def model(request: pytest.FixtureRequest, tiny_base: Path) -> Any:
    base = load_causal(str(tiny_base), revision=None, dtype="bfloat16", quantization=request.param)
    made = with_adapter(base, lora_config(rank=4, alpha=8, dropout=0.0, targets="all-linear"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.1, generator=generator)
    return made


def step(model: Any) -> tuple[dict[str, Tensor], int]:
    """Logits and gradients, and the bytes that were kept for the backward pass."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(model):
        logits = model(IDS).logits
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    logits.float().square().sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {**found, "logits": logits.detach()}, size


def test_the_numbers_are_the_same_and_less_is_kept(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, size = step(model)
    monkeypatch.setattr(BaseTunerLayer, "_cast_input_dtype", adapter_inputs._cast)
    theirs, before = step(model)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    # In each of two layers: what queries, keys and values share is kept once and not three times, what gate and up share
    # once and not twice, and what attention kept already, its output, is the next layer's input.
    assert before - size == 2 * (2 + 1 + 1) * IDS.numel() * 64 * 2


def test_without_autocast_peft_casts_as_ever(model: Any) -> None:
    """A bfloat16 product with a float32 adapter would be an error."""
    with torch.no_grad():
        assert torch.isfinite(model(IDS).logits).all()
