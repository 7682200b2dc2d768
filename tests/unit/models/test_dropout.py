"""A base computes the same in training and evaluation; its saved config keeps its dropout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import architectures
import pytest
import torch
from transformers import AutoConfig

from rlhf.models.dropout import config_with_own_noise
from rlhf.models.loading import load_causal, lora_config, with_adapter

REFUSED = ("bloom", "falcon_alibi", "gpt_neo", "gpt_oss", "gptj", "mamba", "mpt", "phimoe")
NOISY = {name: kind for name, (kind, _) in architectures.FAMILIES.items() if name not in REFUSED}
IDS = torch.arange(10, 30)[None]


def noise_of(kind: str) -> dict[str, float]:
    """Every probability that the configs of a kind have, at a value that shows."""
    config = AutoConfig.for_model(kind)
    return {
        name: 0.4
        for name, value in vars(config).items()
        if ("drop" in name or "jitter" in name) and isinstance(value, int | float) and value is not True
    } | ({"layerdrop": 0.5} if kind == "opt" else {})


@pytest.mark.parametrize("name", NOISY)
def test_a_base_has_no_dropout(name: str, tmp_path: Path) -> None:
    noise = noise_of(NOISY[name])
    folder = architectures.build(name, tmp_path, **noise)
    model: Any = load_causal(str(folder), revision=None, dtype="float32", quantization="none")
    with torch.no_grad():
        expected = model.eval()(input_ids=IDS).logits
        torch.manual_seed(0)
        assert torch.equal(model.train()(input_ids=IDS).logits, expected)
    assert {key: getattr(config_with_own_noise(model), key) for key in noise} == noise


def test_the_adapters_dropout_stays(tmp_path: Path) -> None:
    folder = architectures.build("gpt2", tmp_path)
    base = load_causal(str(folder), revision=None, dtype="float32", quantization="none")
    model: Any = with_adapter(base, lora_config(rank=2, alpha=2, dropout=0.5, targets="all-linear"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
        model.train()
        assert not torch.equal(model(input_ids=IDS).logits, model(input_ids=IDS).logits)
