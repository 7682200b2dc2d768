"""Where bfloat16 is slow, a base is computed in float32: the same weights, and one line that says so."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch

from rlhf.core import formats
from rlhf.core.errors import ModelError
from rlhf.models.loading import autocast, load_causal
from rlhf.training.arguments import trainer_settings


@pytest.fixture(params=[True, False], ids=["emulated", "multiplied"])
def emulated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(formats, "slow_bfloat16", lambda: request.param)
    formats._print_note.cache_clear()
    return bool(request.param)


def test_the_format(emulated: bool) -> None:
    assert formats.effective_dtype("bfloat16") == ("float32" if emulated else "bfloat16")
    assert formats.effective_dtype("float32") == "float32"


@pytest.mark.parametrize("rank", [0, 1])
def test_one_line_says_so(
    emulated: bool,
    rank: int,
    tiny_base: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", str(rank))
    for dtype in ("bfloat16", "bfloat16", "float32"):
        load_causal(str(tiny_base), revision=None, dtype=dtype, quantization="none")
    assert capsys.readouterr().err.count(formats.NOTE) == (emulated and rank == 0)


def test_base_and_trainer_compute_in_it(emulated: bool, tiny_base: Path, tmp_path: Path) -> None:
    model = load_causal(str(tiny_base), revision=None, dtype="bfloat16", quantization="none")
    assert model.dtype == (torch.float32 if emulated else torch.bfloat16)
    with autocast(model):
        assert torch.is_autocast_enabled("cpu") is not emulated
    options = {
        "seed": 0,
        "save_every": 1,
        "gradient_checkpointing": False,
        "learning_rate": 1e-4,
        "schedule": "cosine",
    }
    options |= {"warmup_steps": 0, "weight_decay": 0.0, "betas": (0.9, 0.95), "max_grad_norm": 1.0}
    settings = trainer_settings(folder=str(tmp_path), steps=1, batch_size=1, dtype="bfloat16", **options)
    assert settings["bf16"] is not emulated


def test_a_4_bit_base_computes_in_it(emulated: bool, tiny_base: Path) -> None:
    model = load_causal(str(tiny_base), revision=None, dtype="bfloat16", quantization="nf4")
    layer = model.get_submodule("model.layers.0.mlp.up_proj")
    assert layer.compute_dtype == (torch.float32 if emulated else torch.bfloat16)


@pytest.mark.parametrize(
    ("capability", "dtype", "refused"),
    [
        ((7, 0), "bfloat16", True),
        ((7, 5), "bfloat16", True),
        ((8, 0), "bfloat16", False),
        ((7, 0), "float32", False),
    ],
)
def test_a_gpu_without_bfloat16_is_refused(
    capability: tuple[int, int], dtype: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    with pytest.raises(ModelError) if refused else contextlib.nullcontext():
        formats.require_bfloat16(dtype)


@pytest.mark.parametrize(
    ("product", "vendor", "amx", "slow"),
    [
        (False, "AuthenticAMD", False, True),
        (True, "AuthenticAMD", False, False),
        (True, "GenuineIntel", False, True),
        (True, "GenuineIntel", True, False),
    ],
    ids=["no instruction", "AMD's AVX512", "Intel's AVX512", "Intel's AMX"],
)
def test_the_processors_that_are_slow_in_it(
    product: bool, vendor: str, amx: bool, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    formats.slow_bfloat16.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: product)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(formats, "_is_intel", lambda: vendor == "GenuineIntel")
    assert formats.slow_bfloat16() is slow
    formats.slow_bfloat16.cache_clear()
