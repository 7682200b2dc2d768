"""Liger's kernels are applied to one model and change nothing else.

The library is a fake, never run on a GPU.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llama import modeling_llama

from rlhf.core.errors import ConfigError
from rlhf.kernels import fused
from rlhf.models.loading import load_causal


@pytest.fixture
def model(tiny_base: Path) -> Any:
    return load_causal(str(tiny_base), revision=None, dtype="float32", quantization="none")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Calls of a library that patches a module of transformers, as Liger's functions do, and binds a norm."""
    recorded: list[dict[str, Any]] = []

    def apply_to_instance(model: Any, **settings: Any) -> None:
        recorded.append(settings)
        modeling_llama.LlamaRMSNorm = None  # type: ignore[assignment, misc]
        model.model.norm.forward = lambda x: x * 2

    def rotary(q: Tensor, k: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        recorded.append({"rotary": True})
        return q, k

    names = ("", ".transformers", ".transformers.monkey_patch", ".transformers.rope")
    modules = {fused.LIBRARY + name: types.ModuleType(fused.LIBRARY + name) for name in names}
    vars(modules[f"{fused.LIBRARY}.transformers.monkey_patch"])["_apply_liger_kernel_to_instance"] = (
        apply_to_instance
    )
    vars(modules[f"{fused.LIBRARY}.transformers.rope"])["liger_rotary_pos_emb"] = rotary
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: object() if name == fused.LIBRARY else real(name)
    )
    return recorded


def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU for a base that is still in host memory, as one that FSDP2 will shard."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


def test_a_gpu_uses_the_library_and_none_of_our_layers(
    model: Any, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    norm, rotate = modeling_llama.LlamaRMSNorm, modeling_llama.apply_rotary_pos_emb
    assert "forward" in vars(model.model.layers[0].mlp)
    with monkeypatch.context() as patch:
        on_gpu(patch)
        assert fused.choose_layers(model, "auto")
    assert calls == [fused.APPLIED | fused.NOT_APPLIED]
    assert modeling_llama.LlamaRMSNorm is norm and modeling_llama.apply_rotary_pos_emb is rotate
    assert "forward" not in vars(model.model.layers[0].mlp)  # ours was removed, and the fake binds none
    states = torch.ones(2)
    assert torch.equal(model.model.norm(states), 2 * states)
    model(input_ids=torch.tensor([[5, 6]]))
    assert calls[1:] == [{"rotary": True}] * 2  # one per layer


def test_without_the_library_a_gpu_uses_transformers_layers(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        on_gpu(patch)
        assert not fused.choose_layers(model, "auto")
    body = model.model
    assert not any(
        "forward" in vars(module) for module in (body.norm, body.layers[0].mlp, body.layers[0].self_attn)
    )


@pytest.mark.parametrize("wanted", ["auto", False])
def test_a_cpu_keeps_our_layers(model: Any, calls: list[dict[str, Any]], wanted: Any) -> None:
    assert not fused.choose_layers(model, wanted)
    assert calls == []
    assert "forward" in vars(model.model.layers[0].mlp)


@pytest.mark.usefixtures("calls")
def test_fused_kernels_are_refused_on_a_cpu(model: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        fused.choose_layers(model, True)
    assert caught.value.exit_code == 2
    assert caught.value.fix == "model.fused_kernels=auto"
