"""Keyword arguments of vLLM's `LLM` for an engine in the trainer's process, and checks of the settings."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.config.rollouts import MAX_LORA_RANK
from rlhf.core.errors import ModelError
from rlhf.distributed import processes
from rlhf.models.loading import LoraConfig

BNB_PLUGIN = "vllm-bnb-plugin"
"""Registers bitsandbytes with vLLM, whose own tree has not had it since 0.28."""
MAX_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Maximal ranks that vLLM 0.31 takes, without 1: `MaxLoRARanks` of `vllm/config/lora.py`."""
BNB_PLUGIN_FIX = "pip install --no-deps vllm-bnb-plugin==0.0.3"


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Settings of an engine in the trainer's process.

    Args:
        base: folder or Hugging Face name of the base.
        revision: of the base; None is the newest.
        rank: rank of the policy's adapter; None where all weights are trained.
        max_model_len: longest prompt and answer together, in tokens.
        max_sequences: answers sampled at once in this process.
        dtype: of the base.
        quantization: `none` or `nf4` (on GPUs only).
        memory_gib: size of the key-value cache on a CPU.
        gpu_memory_share: share of the GPU's memory.
        max_num_batched_tokens: tokens of one engine step at most, on a GPU.
        sleep: free the engine's memory between rollouts; on GPUs only.
        seed: of the engine; each prompt has its own seed.
    """

    base: str
    revision: str | None
    rank: int | None
    max_model_len: int
    max_sequences: int
    dtype: str
    quantization: str
    memory_gib: float
    gpu_memory_share: float
    seed: int
    max_num_batched_tokens: int = 8192
    sleep: bool = False


def llm_arguments(settings: EngineSettings, *, on_gpu: bool) -> dict[str, Any]:
    """The keyword arguments of `LLM`."""
    lora: dict[str, Any] = {"enable_lora": False}
    if settings.rank is not None:
        lora = {"enable_lora": True, "max_lora_rank": max_lora_rank(settings.rank), "max_loras": 1}
    device: dict[str, Any] = {
        "kv_cache_memory_bytes": int(settings.memory_gib * 2**30),
        "enforce_eager": True,
    }
    if on_gpu:
        device = {
            "gpu_memory_utilization": settings.gpu_memory_share,
            "max_num_batched_tokens": max(settings.max_num_batched_tokens, settings.max_sequences),
            "enable_sleep_mode": settings.sleep,
        }
    return {
        "model": settings.base,
        "revision": settings.revision,
        "dtype": settings.dtype,
        "quantization": "bitsandbytes" if settings.quantization == "nf4" else None,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_sequences,
        "logprobs_mode": "processed_logprobs",  # of the distribution that was sampled, temperature included
        "seed": settings.seed,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        # With several processes: vLLM uses this rank's GPU and creates no process group.
        "distributed_executor_backend": "external_launcher" if processes.world_size() > 1 else None,
        **lora,
        **device,
    }


def check_settings(settings: EngineSettings, *, on_gpu: bool) -> None:
    """Check that vLLM can serve this base on this device.

    Raises:
        ModelError: 4 bits on a CPU or without vLLM's plugin for them; sleep mode on a CPU.
    """
    if settings.quantization == "nf4":
        if not on_gpu:
            raise ModelError(
                "vLLM has no 4-bit weights on a CPU.",
                allowed="rollouts.engine: transformers, or model.quantization: none",
                fix="rollouts.engine=transformers",
            )
        if not has_bnb_plugin():
            raise ModelError(
                f"model.quantization is nf4, and vLLM has no bitsandbytes: {BNB_PLUGIN} is not installed.",
                allowed=f"vLLM 0.31 with {BNB_PLUGIN} 0.0.3 (`make venv BACKEND=gpu` installs both)",
                fix=f"{BNB_PLUGIN_FIX}, or rollouts.engine=transformers",
            )
    if settings.sleep and not on_gpu:
        raise ModelError(
            "rollouts.sleep is on, and vLLM's sleep mode needs a GPU.",
            allowed="rollouts.sleep: true on a machine with a GPU",
            fix="rollouts.sleep=false",
        )


def max_lora_rank(rank: int) -> int:
    """vLLM's smallest maximal rank that holds an adapter of this rank; at most `MAX_LORA_RANK`."""
    return next(largest for largest in MAX_LORA_RANKS if rank <= largest)


def check_adapter(config: LoraConfig, folder: Path) -> None:
    """Check that vLLM can serve a policy's adapter.

    Raises:
        ModelError: its rank is above vLLM's limit, as ExPO's sum of two ranks may be; or it is a DoRA.
    """
    if config.r <= MAX_LORA_RANK and not config.use_dora:
        return
    kind = "is a DoRA" if config.use_dora else f"has rank {config.r}"
    merged = (
        "--engine transformers"
        if config.use_dora
        else f"--engine transformers; or rlhf export {folder} --output MERGED, and name MERGED"
    )
    raise ModelError(
        f"--engine vllm: the adapter in {folder} {kind}, which vLLM does not support.",
        allowed=f"plain LoRA adapters of rank {MAX_LORA_RANK} at most; whole models",
        fix=merged,
    )


def has_bnb_plugin() -> bool:
    """Whether a package registers bitsandbytes with vLLM."""
    points = importlib.metadata.entry_points(group="vllm.general_plugins")
    return any(point.name == "bitsandbytes" for point in points)
