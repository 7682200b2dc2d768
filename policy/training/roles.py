"""Roles on the policy's base beside the policy and its rewards: the reference of a second round, and the
critic."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policy.rewards.protocol import Rewards
from policy.training.critic import attach_critic
from rlhf.adapters.start import check_adapter, start_from
from rlhf.adapters.storage import read_policy
from rlhf.config.dpo import DPOConfig
from rlhf.config.policy import PolicyConfig
from rlhf.models.chat import Chat
from rlhf.models.loading import PeftModel
from rlhf.models.names import REFERENCE


@dataclass(frozen=True)
class Roles:
    """The roles on the policy's base, or on its frozen copy, besides the policy."""

    rewards: Rewards
    held_out: Rewards | None = None
    held_out_every: int = 1
    frozen: Any | None = None
    """The frozen copy of the base, where all weights are trained; reward adapters may have wrapped it."""


def check_start(config: PolicyConfig | DPOConfig, chat: Chat) -> None:
    """Check before a model is loaded that `start` is a policy.

    Raises:
        ModelError: it is none, has other adapter settings, or is for another chat template.
    """
    if config.start is not None:
        start = read_policy(Path(config.start))
        check_adapter(Path(config.start), start, config.adapter)
        start.check_template(chat)


def attach_start(config: PolicyConfig | DPOConfig, model: PeftModel, chat: Chat) -> None:
    """Start the policy from `start`, if there is one, and attach a frozen copy of it as the reference.

    Raises:
        ModelError: `start` is not a policy that training can start from.
    """
    if config.start is not None:
        folder = Path(config.start)
        start = read_policy(folder)
        start_from(folder, start, model, chat)
        start.attach(model, REFERENCE)


def attach_roles(config: PolicyConfig, model: PeftModel, chat: Chat) -> None:
    """Attach reference and critic to the base, where the config has them, see `attach_start`."""
    attach_start(config, model, chat)
    if config.algorithm.critic is not None:
        attach_critic(model, config)
