"""Facts of the rollout servers that a config names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rlhf.config.policy import PolicyConfig
from rlhf.config.reward import RewardConfig
from rlhf.core.errors import ModelError
from rlhf.doctor.facts import EMBEDDED, Served, Trouble

if TYPE_CHECKING:
    from policy.rollouts.servers.client import Server
    from policy.rollouts.servers.start import Wanted


def servers_of(config: RewardConfig | PolicyConfig) -> Iterator[Served]:
    """The rollout servers and what each serves."""
    if not isinstance(config, PolicyConfig) or not config.rollouts.servers:
        return
    from policy.rollouts.protocol import Sampling
    from policy.rollouts.servers.client import Server
    from policy.rollouts.servers.start import Wanted
    from rlhf.models.embedded import NAME, cache_folder

    rollouts, base = config.rollouts, config.model.base
    assert config.adapter is not None  # the config requires one with servers
    wanted = Wanted(
        base=base,
        folder=str(cache_folder() / NAME) if base == EMBEDDED else base,
        rank=config.adapter.rank,
        length=config.data.max_prompt_tokens + rollouts.max_new_tokens,
        token_env=rollouts.token_env,
        sampling=Sampling(rollouts.max_new_tokens, rollouts.temperature, ()),
    )
    token = os.environ.get(rollouts.token_env, "").strip() or None
    for url in rollouts.servers:
        yield Served(url, _served(Server(url, token=token, timeout=rollouts.timeout), wanted))


def _served(server: Server, wanted: Wanted) -> int | Trouble:
    """The context of a server, or why it cannot be used."""
    from policy.rollouts.servers.client import ServerError
    from policy.rollouts.servers.start import check_served, server_mistake

    try:
        served = server.models()[0]
        check_served(served, server.url, wanted)
        return int(served.get("max_model_len", wanted.length))
    except ServerError as problem:
        error = server_mistake(server, problem, wanted)
    except ModelError as wrong:
        error = wrong
    return Trouble(error.found, error.fix)
