"""The in-process engine's arguments, by vLLM's own classes.

And what vLLM may not change in the trainer's process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from peft import LoraConfig

from policy.evaluation.speaker import Speaker
from policy.rollouts.vllm import arguments as vllm_arguments
from policy.rollouts.vllm.arguments import (
    MAX_LORA_RANKS,
    EngineSettings,
    check_settings,
    llm_arguments,
    max_lora_rank,
)
from policy.rollouts.vllm.process import EngineProcess
from rlhf.config.rollouts import MAX_LORA_RANK
from rlhf.core.errors import ModelError

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed")


def settings(**values: Any) -> EngineSettings:
    defaults: dict[str, Any] = {
        "base": "b",
        "revision": None,
        "rank": 12,
        "max_model_len": 640,
        "max_sequences": 64,
        "dtype": "bfloat16",
        "quantization": "none",
        "memory_gib": 0.5,
        "gpu_memory_share": 0.35,
        "seed": 3,
    }
    return EngineSettings(**defaults | values)


@needs_vllm
@pytest.mark.parametrize("on_gpu", [True, False])
def test_vllm_has_every_argument(on_gpu: bool) -> None:
    from vllm import EngineArgs

    arguments = llm_arguments(settings(), on_gpu=on_gpu)
    fields = {field.name for field in dataclasses.fields(EngineArgs)}
    assert arguments.keys() - fields <= {"use_tqdm_on_load"}
    assert arguments["max_lora_rank"] == 16


@needs_vllm
def test_the_lora_ranks_are_those_of_vllm() -> None:
    from vllm.config.lora import MaxLoRARanks

    assert set(get_args(MaxLoRARanks)) == {1, *MAX_LORA_RANKS}
    assert MAX_LORA_RANKS[-1] == MAX_LORA_RANK


@pytest.mark.parametrize(("rank", "largest"), [(1, 8), (8, 8), (9, 16), (100, 128), (257, 320), (512, 512)])
def test_the_smallest_lora_rank_of_vllm_that_holds_the_adapter(rank: int, largest: int) -> None:
    assert max_lora_rank(rank) == largest


@needs_vllm
@pytest.mark.parametrize("rank", [1, 8, 9, 64, 100, 300, 512])
def test_vllm_accepts_the_lora_rank(rank: int) -> None:
    from vllm.config import LoRAConfig

    arguments = llm_arguments(settings(rank=rank), on_gpu=True)
    config = LoRAConfig(max_lora_rank=arguments["max_lora_rank"], max_loras=arguments["max_loras"])
    assert config.max_lora_rank >= rank


@needs_vllm
def test_vllms_configs_take_the_arguments(tiny_base: Path) -> None:
    from vllm import EngineArgs

    wanted = settings(base=str(tiny_base), dtype="float32", max_model_len=128, max_sequences=4)
    arguments = llm_arguments(wanted, on_gpu=False)
    del arguments["use_tqdm_on_load"]
    config = EngineArgs(**arguments).create_model_config()
    assert (config.model, config.max_model_len, config.seed) == (str(tiny_base), 128, 3)
    assert config.logprobs_mode == "processed_logprobs"
    assert config.enforce_eager
    assert config.dtype == torch.float32


@needs_vllm
def test_vllms_config_refuses_an_unknown_logprobs_mode(tiny_base: Path) -> None:
    from pydantic import ValidationError
    from vllm import EngineArgs

    arguments = llm_arguments(settings(base=str(tiny_base), dtype="float32", max_model_len=128), on_gpu=False)
    del arguments["use_tqdm_on_load"]
    with pytest.raises(ValidationError):
        EngineArgs(**{**arguments, "logprobs_mode": "processed"}).create_model_config()


def test_the_step_size_of_the_plan_is_passed_on_a_gpu() -> None:
    on_gpu = llm_arguments(settings(max_num_batched_tokens=4096), on_gpu=True)
    assert on_gpu["max_num_batched_tokens"] == 4096
    assert on_gpu["gpu_memory_utilization"] == 0.35
    # vLLM refuses a step smaller than its number of sequences
    assert (
        llm_arguments(settings(max_num_batched_tokens=8, max_sequences=64), on_gpu=True)[
            "max_num_batched_tokens"
        ]
        == 64
    )
    assert "max_num_batched_tokens" not in llm_arguments(settings(), on_gpu=False)


def test_four_bits_need_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_arguments, "has_bnb_plugin", lambda: False)
    check_settings(settings(), on_gpu=True)
    with pytest.raises(ModelError) as caught:
        check_settings(settings(quantization="nf4"), on_gpu=True)
    assert "vllm-bnb-plugin" in caught.value.found
    assert "vllm-bnb-plugin==0.0.3" in caught.value.fix
    monkeypatch.setattr(vllm_arguments, "has_bnb_plugin", lambda: True)
    check_settings(settings(quantization="nf4"), on_gpu=True)


@pytest.mark.parametrize("values", [{"quantization": "nf4"}, {"sleep": True}])
def test_settings_that_a_cpu_does_not_support(values: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        check_settings(settings(**values), on_gpu=False)


def test_threads_and_garbage_collection_are_restored() -> None:
    threads, set_threads, frozen = torch.get_num_threads(), torch.set_num_threads, gc.get_freeze_count()
    process = EngineProcess()
    with process.starting():
        torch.set_num_threads(threads + 1)
        torch.set_num_threads = lambda count: None  # as vLLM's CPU worker does
        gc.freeze()
        assert gc.get_freeze_count() > frozen
    assert torch.get_num_threads() == threads
    assert torch.set_num_threads is set_threads
    assert gc.get_freeze_count() == 0
    with process.working():
        assert process.stream is None


@pytest.mark.parametrize(
    ("adapter", "fix"),
    [
        (LoraConfig(r=513), "rlhf export runs/p/final --output MERGED"),
        (LoraConfig(r=8, use_dora=True), "--engine transformers"),
    ],
)
def test_adapters_that_vllm_does_not_support(adapter: LoraConfig, fix: str) -> None:
    """Such as ExPO's, whose rank is the sum of two."""
    speaker = Speaker("p", Path("runs/p/final"), {}, adapter, None, 512, {})  # type: ignore[arg-type]
    with pytest.raises(ModelError) as caught:
        speaker.check_engine("vllm")
    assert fix in caught.value.fix
    speaker.check_engine("transformers")
    with pytest.raises(ModelError):
        speaker.check_engine("tensorrt")


@pytest.mark.parametrize("adapter", [None, LoraConfig(r=512)])
def test_adapters_that_vllm_supports(adapter: LoraConfig | None) -> None:
    Speaker("p", Path("f"), {}, adapter, None, 512, {}).check_engine("vllm")  # type: ignore[arg-type]


class Stream:
    """A stand-in for a CUDA stream, which records what it waits for."""

    def __init__(self, name: str) -> None:
        self.name, self.waited = name, list[str]()

    def wait_stream(self, other: Stream) -> None:
        self.waited.append(other.name)


def test_the_trainer_keeps_its_stream_and_both_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes' kernels take no stream: a base loaded after the engine would be quantized on another."""
    trainer, engine = Stream("trainer"), Stream("engine")
    current: list[Any] = [trainer]

    @contextlib.contextmanager
    def within(stream: Stream) -> Iterator[None]:
        current.append(stream)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current[-1])
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: current.__setitem__(-1, stream))
    monkeypatch.setattr(torch.cuda, "stream", within)
    process = EngineProcess()
    with process.starting():
        torch.cuda.set_stream(engine)  # type: ignore[arg-type]
    assert current == [trainer]
    assert (trainer.waited, engine.waited) == (["engine"], [])
    with process.working():
        assert current[-1] is engine
        assert engine.waited == ["trainer"]
    assert current == [trainer]
    assert trainer.waited == ["engine", "engine"]
