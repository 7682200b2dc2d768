"""The rollout engine of a config."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch

from policy.rollouts.paged_engine import PagedEngine
from policy.rollouts.protocol import RolloutEngine, Sampling
from policy.rollouts.servers.client import Server
from policy.rollouts.servers.engine import ServerEngine
from policy.rollouts.servers.fleet import Fleet
from policy.rollouts.servers.start import Wanted
from policy.rollouts.transformers_engine import TransformersEngine
from policy.rollouts.vllm.arguments import EngineSettings
from rlhf.config.policy import PolicyConfig
from rlhf.core.errors import ConfigError
from rlhf.core.formats import effective_dtype
from rlhf.distributed import processes, sharding
from rlhf.models.chat import Chat
from rlhf.models.embedded import resolve_base
from rlhf.runs.gpu_memory import phase


@phase("rollouts")
def build_engine(config: PolicyConfig, chat: Chat) -> RolloutEngine:
    """The engine that `rollouts.engine` names.

    Raises:
        GpuMemoryError: vLLM's weights or its cache do not fit beside the trainer's.
    """
    sampling = Sampling(config.rollouts.max_new_tokens, config.rollouts.temperature, chat.stop_ids)
    if config.rollouts.engine == "transformers":
        if uses_paged_cache(config):
            return PagedEngine(sampling, chat, max_batch_tokens=config.rollouts.max_num_batched_tokens)
        return TransformersEngine(sampling, chat)
    if config.rollouts.engine == "servers":
        return engine_of_servers(config, sampling, chat)
    from policy.rollouts.vllm.engine import VLLMEngine  # vllm may not be installed

    return VLLMEngine(engine_settings(config), sampling, chat)


def uses_paged_cache(config: PolicyConfig) -> bool:
    """Whether transformers samples by continuous batching: as the config says, by default on a GPU with whole
    weights.

    Raises:
        ConfigError: the config enables it, and the weights are sharded.
    """
    enabled = config.rollouts.continuous_batching
    if enabled and sharding.is_requested():
        raise ConfigError(
            "rollouts.continuous_batching is true, and the launcher shards the weights.",
            allowed="continuous batching on weights that are whole: one process, or DDP",
            fix="rollouts.continuous_batching=false, or rollouts.engine=servers",
        )
    if enabled is None:
        return torch.cuda.is_available() and not sharding.is_requested()
    return enabled


def engine_settings(config: PolicyConfig) -> EngineSettings:
    """vLLM's settings in this process; it samples all of the rank's answers of an update at once.

    Raises:
        ModelError: the base is `embedded`, and cannot be built.
    """
    rollouts = config.rollouts
    prompts = processes.per_rank(rollouts.prompts_per_step, "rollouts.prompts_per_step")
    return EngineSettings(
        resolve_base(config.model.base),
        revision=config.model.revision,
        rank=None if config.adapter is None else config.adapter.rank,
        max_model_len=config.data.max_prompt_tokens + rollouts.max_new_tokens,
        max_sequences=prompts * rollouts.samples_per_prompt,
        dtype=effective_dtype(config.model.dtype),
        quantization=config.model.quantization,
        memory_gib=rollouts.memory_gib,
        gpu_memory_share=rollouts.gpu_memory_share,
        max_num_batched_tokens=rollouts.max_num_batched_tokens,
        sleep=rollouts.sleep,
        seed=config.seed,
    )


def engine_of_servers(config: PolicyConfig, sampling: Sampling, chat: Chat) -> ServerEngine:
    """The servers of the config as one engine; each is checked."""
    rollouts = config.rollouts
    assert config.adapter is not None  # validated by the config
    wanted = Wanted(
        base=config.model.base,
        folder=resolve_base(config.model.base),
        rank=config.adapter.rank,
        length=config.data.max_prompt_tokens + rollouts.max_new_tokens,
        token_env=rollouts.token_env,
        sampling=sampling,
    )
    token = os.environ.get(rollouts.token_env, "").strip() or None
    servers = [Server(url, token=token, timeout=rollouts.timeout) for url in rollouts.servers]
    return ServerEngine(
        Fleet(servers, wanted),
        chat,
        folder=adapter_folder(config.output, rollouts.adapter_folder),
        seed=config.seed,
    )


def adapter_folder(output: Path, shared: str | None) -> Path:
    """Where a run writes adapters for its servers: in the run folder, or in a subfolder of `shared`, unique
    to the run."""
    run = output.resolve()
    if shared is None:
        return run / "adapters"
    return Path(shared).resolve() / f"{run.name}-{hashlib.sha256(str(run).encode()).hexdigest()[:8]}"
