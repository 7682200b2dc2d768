"""The input of a plan: config, GPUs, strategy, and assumptions on speed and length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from rlhf.config.policy import PolicyConfig
from rlhf.config.reward import RewardConfig
from rlhf.config.schema import AdapterConfig
from rlhf.core.errors import ConfigError
from rlhf.kernels.packing import GPU_GRAIN
from rlhf.plan.gpus import Cluster
from rlhf.plan.memory.passes import UpdateRow
from rlhf.plan.memory.shapes import reason_by_shape

Config = TypeVar("Config", bound=RewardConfig | PolicyConfig)

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


def longest_sequence(config: RewardConfig | PolicyConfig) -> int:
    """Tokens of the longest conversation: of a response, or of a prompt with one answer."""
    if isinstance(config, PolicyConfig):
        return config.data.max_prompt_tokens + config.rollouts.max_new_tokens
    return config.model.max_length


def sequences_of_item(config: RewardConfig | PolicyConfig) -> int:
    """Sequences of an item: the answers to a prompt, the two responses of a pair, or one rated response."""
    if isinstance(config, PolicyConfig):
        return config.rollouts.samples_per_prompt
    return 2 if config.data.preferences or config.data.pair_rated else 1


def longest_tree(config: RewardConfig | PolicyConfig) -> int:
    """Tokens of the longest item, which is never split: a pair, or a prompt with all its answers.

    With one sequence per row the prompt is computed with each answer.
    """
    if isinstance(config, PolicyConfig) and config.model.packing:
        rollouts = config.rollouts
        return config.data.max_prompt_tokens + rollouts.samples_per_prompt * (
            rollouts.max_new_tokens + CLOSING
        )
    return sequences_of_item(config) * longest_sequence(config)


def row_of(config: RewardConfig | PolicyConfig, *, grain: int = GPU_GRAIN) -> UpdateRow:
    """The largest batch of packed rows that a run of this config can make, see `rlhf.kernels.packing.pack`.

    Args:
        grain: row lengths are a multiple of it.
    """
    rows, width = _cells(config, grain)
    tokens = rows * width
    adapter, model = adapter_of(config), config.model
    shared: dict[str, Any] = {
        "tokens": tokens,
        "rows": 1 if model.packing else rows,
        "dtype": model.dtype,
        "quantization": model.quantization,
        "checkpointing": model.gradient_checkpointing,
        "rank": adapter.rank,
        "dropout": adapter.dropout,
        "targets": adapter.targets if isinstance(adapter.targets, str) else tuple(adapter.targets),
    }
    if isinstance(config, RewardConfig):
        sequences = 2 * max(1, tokens // config.model.max_length) if model.packing else rows
        outputs = len(config.attributes)
        return UpdateRow(
            command="train-reward", sequences=sequences, logprob_tokens=0, outputs=outputs, **shared
        )
    groups = max(1, tokens // longest_tree(config))
    answers = groups * config.rollouts.samples_per_prompt if model.packing else rows
    return UpdateRow(
        command="align-policy",
        sequences=answers,
        logprob_tokens=tokens if model.packing else rows * config.rollouts.max_new_tokens,
        outputs=1,
        rewards=len(config.reward_folders),
        reference=config.start is not None,
        critic=config.algorithm.critic is not None,
        **shared,
    )


def _cells(config: RewardConfig | PolicyConfig, grain: int) -> tuple[int, int]:
    """Rows and tokens of a row of the largest batch.

    Packed, it is one row. Else an item's sequences share a batch, whatever the budget, and further items join
    as long as the budget, rounded up to the grain, holds them all.
    """
    budget = _rounded(config.tokens_per_batch, grain)
    if config.model.packing:
        return 1, max(budget, _rounded(longest_tree(config), grain))
    width, sequences = _rounded(longest_sequence(config), grain), sequences_of_item(config)
    rows = max(sequences, budget // width)
    # Shorter sequences may fill a budget better.
    return rows, max(width, -(-budget // rows))


def _rounded(tokens: int, grain: int) -> int:
    return tokens + -tokens % grain


def as_packed(config: Config, shape: Any) -> tuple[Config, str | None]:
    """The config with `model.packing` false for a base whose rows a run will not pack, and the reason.

    Only what its kind of layers shows is known before a run, which measures any other base.
    """
    reason = reason_by_shape(shape) if config.model.packing else None
    return (changed(config, "model.packing", False) if reason else config), reason


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
