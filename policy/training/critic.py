"""PPO's critic: an adapter on the policy's base and a value head with one output.

If the reward is a single adapter on the same base, the critic starts from it, and its first values are
rewards. Otherwise it starts from a fresh adapter and a head of zeros.

Shapes: A attributes of the reward model, D hidden units, M tokens of all answers of a micro-batch.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from rlhf.adapters.storage import RewardAdapter
from rlhf.config.policy import PolicyConfig
from rlhf.config.rewards import RewardSource
from rlhf.kernels import adapter_layers
from rlhf.models.forwards import enable_packed_values
from rlhf.models.loading import PeftModel, fit_targets, lora_config, upcast_trainable
from rlhf.models.names import CRITIC, VALUE_HEAD
from rlhf.models.roles import keep_trainable


def critic_start(config: PolicyConfig) -> RewardSource | None:
    """The reward model that the critic starts from; None for a fresh critic.

    It is also None if the reward is not a single adapter, or is normalised to another scale.
    """
    critic, only = config.algorithm.critic, config.reward[0]
    fits = len(config.reward) == 1 and config.reward_shaping.normalise == "none"
    return only if critic is not None and critic.start == "reward" and fits and only.adapter else None


def attach_critic(model: PeftModel, config: PolicyConfig) -> None:
    """Attach a trainable critic to the policy's base.

    Raises:
        ModelError: the reward model that it starts from is for another base.
    """
    base, start = model.get_base_model(), critic_start(config)
    head = nn.Linear(base.config.get_text_config().hidden_size, 1, bias=False, device=model.device)
    nn.init.zeros_(head.weight)
    if start is not None and start.adapter is not None:
        reward = RewardAdapter.read(Path(start.adapter))
        reward.lora.attach(model, CRITIC)
        with torch.no_grad():
            head.weight.copy_(start.weight * reward.head_AD[:1])
    else:
        assert config.adapter is not None  # validated by the config
        with keep_trainable(model):
            model.add_adapter(CRITIC, fit_targets(base, lora_config(**config.adapter.model_dump())))
        adapter_layers.enable(model)
    enable_packed_values(base, head)
    for name, parameter in model.named_parameters():
        if _is_critic(name):
            parameter.requires_grad_(True)
    upcast_trainable(model)


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trained parameters of the policy, and those of the critic."""
    policy, critic = list[nn.Parameter](), list[nn.Parameter]()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (critic if _is_critic(name) else policy).append(parameter)
    return policy, critic


def add_critic_group(
    optimizer: torch.optim.Optimizer, model: nn.Module, learning_rate: float, weight_decay: float
) -> None:
    """Move the critic's parameters to a parameter group with their own learning rate."""
    _, critic = split_parameters(model)
    critic_ids = {id(parameter) for parameter in critic}
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in critic_ids]
    optimizer.add_param_group({"params": critic, "lr": learning_rate, "weight_decay": weight_decay})


def _is_critic(name: str) -> bool:
    return bool({CRITIC, VALUE_HEAD} & set(name.split(".")))
