"""An adapter that vLLM loads from a policy's folder, against the same adapter handed over by the trainer."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed"),
]


def test_a_folder_samples_like_a_synced_adapter(tmp_path: Path) -> None:
    import torch

    from policy.rollouts.protocol import Sampling
    from policy.rollouts.vllm.arguments import EngineSettings
    from policy.rollouts.vllm.engine import VLLMEngine
    from policy.save import save_final
    from rlhf.config.policy import PolicyConfig
    from rlhf.core.formats import effective_dtype
    from rlhf.core.records import Message
    from rlhf.models.chat import Chat
    from rlhf.models.embedded import resolve_base
    from rlhf.models.loading import load_causal, lora_config, with_adapter

    chat = Chat.load("embedded")
    causal = load_causal("embedded", revision=None, dtype="bfloat16", quantization="none")
    model: Any = with_adapter(causal, lora_config(rank=8, alpha=16, dropout=0.0, targets="all-linear"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.02, generator=generator))
    options = {"output": "unused", "reward": "r", "data": {"prompts": [{"path": "demo"}]}}
    save_final(PolicyConfig.model_validate(options), model, chat, tmp_path / "final")
    settings = EngineSettings(
        resolve_base("embedded"),
        revision=None,
        rank=8,
        max_model_len=128,
        max_sequences=2,
        dtype=effective_dtype("bfloat16"),
        quantization="none",
        memory_gib=0.25,
        gpu_memory_share=0.3,
        seed=0,
    )
    engine = VLLMEngine(settings, Sampling(12, 0.0, chat.stop_ids), chat)
    prompts = [chat.prompt_ids((Message("user", text),)) for text in ("Tell me about tea.", "Name a river.")]

    def greedy() -> list[str]:
        return [group[0].text for group in engine.generate(prompts, samples=1, seed=0)]

    alone = greedy()
    engine.sync(model)
    synced = greedy()
    engine.load(tmp_path / "final")
    assert greedy() == synced != alone
