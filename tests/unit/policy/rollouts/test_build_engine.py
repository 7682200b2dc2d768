"""The engine of a config: its size in each process, and where transformers samples by a paged cache."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from policy.rollouts.build import build_engine, engine_settings, uses_paged_cache
from rlhf.config.policy import PolicyConfig
from rlhf.core.errors import ConfigError
from rlhf.runs.gpu_memory import GpuMemoryError, phase


def config(**rollouts: Any) -> PolicyConfig:
    return PolicyConfig.model_validate(
        {
            "output": "unused",
            "model": {"base": "."},
            "reward": [{"function": "gold"}],
            "data": {"prompts": [{"path": "demo"}], "max_prompt_tokens": 100},
            "rollouts": {"prompts_per_step": 8, "samples_per_prompt": 3, "max_new_tokens": 28, **rollouts},
        }
    )


@pytest.mark.parametrize(("processes", "answers"), [("1", 24), ("4", 6)])
def test_an_engine_has_room_for_the_answers_of_its_process(
    processes: str, answers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    settings = engine_settings(config(max_num_batched_tokens=2048))
    assert settings.max_sequences == answers
    assert settings.max_model_len == 128
    assert settings.max_num_batched_tokens == 2048


def test_memory_that_runs_out_while_the_engine_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan counts the engine in the rollouts, not in the loading of the base."""

    def start(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("policy.rollouts.vllm.engine.VLLMEngine", start)
    chat: Any = SimpleNamespace(stop_ids=(2,))
    with pytest.raises(GpuMemoryError) as caught, phase("loading"):
        build_engine(config(), chat)
    assert caught.value.phase == "rollouts"


def test_a_gpu_samples_by_a_paged_cache_unless_the_weights_are_sharded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not uses_paged_cache(config(engine="transformers"))
    assert uses_paged_cache(config(engine="transformers", continuous_batching=True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert uses_paged_cache(config(engine="transformers"))
    assert not uses_paged_cache(config(engine="transformers", continuous_batching=False))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert not uses_paged_cache(config(engine="transformers"))
    with pytest.raises(ConfigError) as caught:
        uses_paged_cache(config(engine="transformers", continuous_batching=True))
    assert "rollouts.continuous_batching=false" in caught.value.fix
