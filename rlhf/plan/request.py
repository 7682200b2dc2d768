"""The input of a plan: config, GPUs, strategy, and assumptions on speed and length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf.config.policy import PolicyConfig
from rlhf.config.reward import RewardConfig
from rlhf.config.schema import AdapterConfig
from rlhf.core.errors import ConfigError
from rlhf.plan.gpus import Cluster
from rlhf.plan.memory.passes import Row

GRAIN = 16  # rows are padded to a multiple of this, see rlhf.kernels.packing
CLOSING = 1  # token of a branch beside its answer: the last one of the prompt


@dataclass(frozen=True)
class Assumptions:
    """Values that a trace cannot know; each is an option of `rlhf plan`."""

    utilisation: tuple[float, float] = (0.18, 0.35)
    """Least and greatest share of the GPUs' peak that training reaches, recomputation counted as work. From
    published runs of LoRA on Llama-3 (8 GPUs, 70B: 18 % untuned, 32 % tuned; one GPU, 8B: 41 % without
    recomputation) and of RL (22 %)."""
    item_tokens: int = 1024
    """Mean tokens of a pair or a rated response."""
    prompt_tokens: int = 256
    """Mean tokens of a prompt."""
    answer_tokens: int = 512
    """Mean tokens of an answer."""

    def item(self, config: RewardConfig) -> int:
        """Mean tokens of a pair or a rated response, at most the config's maximum."""
        return min(self.item_tokens, longest_tree(config))

    def lengths(self, config: PolicyConfig) -> tuple[int, int]:
        """Mean tokens of a prompt and of an answer, at most the config's maxima."""
        prompt, answer = config.data.max_prompt_tokens, config.rollouts.max_new_tokens
        return min(self.prompt_tokens, prompt), min(self.answer_tokens, answer)


@dataclass(frozen=True)
class Request:
    """One plan."""

    config: RewardConfig | PolicyConfig
    cluster: Cluster
    strategy: str
    """A name of `sharding.STRATEGIES`."""
    servers: Cluster | None = None
    """GPUs of rollout servers; None: the engine runs in the trainer's processes."""


def longest_tree(config: RewardConfig | PolicyConfig) -> int:
    """Tokens of the longest item, which is never split: a pair, or a prompt with all its answers."""
    if isinstance(config, PolicyConfig):
        rollouts = config.rollouts
        return config.data.max_prompt_tokens + rollouts.samples_per_prompt * (
            rollouts.max_new_tokens + CLOSING
        )
    has_pairs = bool(config.data.preferences) or config.data.pair_rated
    return config.model.max_length * (2 if has_pairs else 1)


def row_of(config: RewardConfig | PolicyConfig) -> Row:
    """The largest row a run of this config can make."""
    tokens = max(config.tokens_per_batch, longest_tree(config))
    tokens += -tokens % GRAIN
    adapter, model = adapter_of(config), config.model
    shared: dict[str, Any] = {
        "tokens": tokens,
        "dtype": model.dtype,
        "quantization": model.quantization,
        "checkpointing": model.gradient_checkpointing,
        "rank": adapter.rank,
        "dropout": adapter.dropout,
        "targets": adapter.targets if isinstance(adapter.targets, str) else tuple(adapter.targets),
    }
    if isinstance(config, RewardConfig):
        sequences = 2 * max(1, tokens // config.model.max_length)
        outputs = len(config.attributes)
        return Row(command="train-reward", sequences=sequences, logprob_tokens=0, outputs=outputs, **shared)
    groups = max(1, tokens // longest_tree(config))
    return Row(
        command="align-policy",
        sequences=groups * config.rollouts.samples_per_prompt,
        logprob_tokens=tokens,
        outputs=1,
        rewards=len(config.reward_folders),
        reference=config.start is not None,
        critic=config.algorithm.critic is not None,
        **shared,
    )


def adapter_of(config: RewardConfig | PolicyConfig) -> AdapterConfig:
    """The config's adapter.

    Raises:
        ConfigError: there is none: all weights are trained, which a plan does not model.
    """
    if config.adapter is None:
        raise ConfigError(
            "adapter is null: all weights are trained, and a plan is for adapters only.",
            allowed="a config with an adapter; without one a trainer holds 20 bytes a parameter (in float32 "
            "trained and frozen weights, gradients, AdamW's two moments), and activations",
            fix="rlhf doctor CONFIG, which compares that with the machine",
        )
    return config.adapter


def changed(config: Any, key: str, value: Any) -> Any:
    """The config with one dotted key set to another value."""
    name, _, rest = key.partition(".")
    return config.model_copy(update={name: changed(getattr(config, name), rest, value) if rest else value})
