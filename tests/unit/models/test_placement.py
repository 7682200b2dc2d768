"""Placement of weights while a base is loaded for sharding: arguments, order, bytes written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from transformers import modeling_utils
from transformers.integrations.bitsandbytes import Bnb4bitQuantize

from reward.load_scorer import load_scorer
from rlhf.core.errors import RunError
from rlhf.models import placement
from rlhf.models.loading import load_causal


@pytest.fixture
def sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")


def four_bits(base: Path, **extra: Any) -> Any:
    return load_causal(str(base), revision=None, dtype="bfloat16", quantization="nf4", **extra)


@pytest.mark.usefixtures("sharded")
def test_a_4_bit_base_that_is_sharded_is_loaded_into_the_machines_memory() -> None:
    with placement.loading("nf4") as where:
        assert where == {"device_map": {"": "cpu"}}
    with placement.loading("none") as where:
        assert where == {}


def test_one_that_is_not_sharded_is_loaded_where_transformers_puts_it() -> None:
    stock = Bnb4bitQuantize.convert
    with placement.loading("nf4") as where:
        assert where == {}
        assert Bnb4bitQuantize.convert is stock
    with placement.loading("nf4", on_host=True) as where:  # for an export
        assert where == {"device_map": {"": "cpu"}}


def test_weights_pass_the_gpu_one_at_a_time(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU stands for the GPU: each weight is quantized by itself, with the same bits."""
    taken: list[int] = []
    stock = Bnb4bitQuantize.convert

    def watched(self: Any, input_dict: dict[str, Any], **kwargs: Any) -> Any:
        taken.append(len(input_dict))
        return stock(self, input_dict, **kwargs)

    plain = four_bits(tiny_base)
    monkeypatch.setattr(Bnb4bitQuantize, "convert", watched)
    with placement.quantized_on(torch.device("cpu"), scales_on_host=False):
        ours = four_bits(tiny_base)
    layers = [layer for layer in ours.modules() if isinstance(layer, Linear4bit)]
    assert taken == [1] * len(layers)
    for layer, expected in zip(
        layers, (m for m in plain.modules() if isinstance(m, Linear4bit)), strict=True
    ):
        assert torch.equal(layer.weight.view(torch.uint8), expected.weight.view(torch.uint8))
        assert torch.equal(layer.weight.quant_state.absmax, expected.weight.quant_state.absmax)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, plain(ids).logits)


@pytest.mark.usefixtures("sharded")
def test_a_rank_that_receives_its_weights_writes_none(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zeros over a copy of the model would take the model's size of memory in every process."""
    monkeypatch.setattr(modeling_utils, "is_fsdp_enabled", lambda: True)
    monkeypatch.setattr(modeling_utils, "is_local_dist_rank_0", lambda: False)
    written = [0]
    zeros_like = torch.zeros_like

    def counted(tensor: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        written[0] += tensor.numel()
        return zeros_like(tensor, **kwargs)

    monkeypatch.setattr(torch, "zeros_like", counted)
    model = load_causal(str(tiny_base), revision=None, dtype="float32", quantization="none")
    assert written[0] == 0
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    rotary = model.model.rotary_emb.inv_freq
    assert torch.isfinite(rotary).all()
    assert rotary[0] == 1.0  # what is computed and not loaded is there


def test_no_base_is_loaded_where_torch_can_use_none_of_the_gpus(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any command: a driver too old for torch would let it compute on the CPU."""
    (tmp_path / "0000:01:00.0").mkdir()
    monkeypatch.setattr(placement, "GPU_FILES", tmp_path)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(RunError) as caught:
        load_causal(str(tiny_base), revision=None, dtype="float32", quantization="none")
    assert "CUDA_VISIBLE_DEVICES=" in caught.value.fix
    with pytest.raises(RunError):
        load_scorer(tiny_base, form="nemotron")
