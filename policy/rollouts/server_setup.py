"""From a run's config to its servers."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from policy.rollouts.protocol import Sampling
from policy.rollouts.server_client import Server
from policy.rollouts.server_engine import ServerEngine
from policy.rollouts.server_fleet import Fleet
from policy.rollouts.server_start import Wanted
from rlhf.config.policy import PolicyConfig
from rlhf.models.chat import Chat
from rlhf.models.embedded import resolve_base


def engine_of_servers(config: PolicyConfig, sampling: Sampling, chat: Chat) -> ServerEngine:
    """The servers the config names, each looked at."""
    rollouts = config.rollouts
    assert config.adapter is not None  # the config's own check
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


def adapter_folder(output: Path, told: str | None) -> Path:
    """Where a run leaves its adapters: in its own folder, or in one of its own within a folder for all."""
    own = output.resolve()
    if told is None:
        return own / "adapters"
    return Path(told).resolve() / f"{own.name}-{hashlib.sha256(str(own).encode()).hexdigest()[:8]}"
