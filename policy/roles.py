"""Roles on the policy's base beside the policy and its rewards: the reference of a second round, and the
critic."""

from __future__ import annotations

from pathlib import Path

from policy.critic import hang_critic
from rlhf.adapters.start import start_from
from rlhf.adapters.storage import read_policy
from rlhf.config.policy import PolicyConfig
from rlhf.models.chat import Chat
from rlhf.models.loading import REFERENCE, PeftModel


def check_start(config: PolicyConfig, chat: Chat) -> None:
    """Find out before anything is loaded whether there is a policy to begin from.

    Raises:
        ModelError: there is none, or it is for another chat template.
    """
    if config.start is not None:
        read_policy(Path(config.start)).check_template(chat)


def attach_roles(config: PolicyConfig, model: PeftModel, chat: Chat) -> None:
    """Put on the base what the config asks for.

    Raises:
        ModelError: `start` is no policy, or one that training cannot begin from.
    """
    if config.start is not None:
        folder = Path(config.start)
        start = read_policy(folder)
        start_from(folder, start, model, chat)
        start.attach(model, REFERENCE)
    if config.algorithm.critic is not None:
        hang_critic(model, config)
