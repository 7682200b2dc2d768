"""A policy and prompts for the engines in the trainer's process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.core.records import Message
from rlhf.models.chat import Chat
from rlhf.models.loading import load_causal, lora_config, with_adapter


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Any:
    """The tiny base with a random adapter."""
    base = load_causal(str(tiny_base), revision=None, dtype="float32", quantization="none")
    torch.manual_seed(0)
    wrapped = with_adapter(base, lora_config(rank=4, alpha=8, dropout=0.5, targets="all-linear"))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
    return wrapped


@pytest.fixture
def prompts(tiny_chat: Chat) -> list[list[int]]:
    return [tiny_chat.prompt_ids((Message("user", text),)) for text in ("Hi.", "Name seven colours, please.")]
