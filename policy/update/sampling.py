"""The rollouts of an update and their rewards."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from policy.rewards.protocol import RewardResult, Rewards
from policy.rollouts.protocol import RolloutEngine
from rlhf.core.records import Prompt, Rollout
from rlhf.models.loading import PeftModel

HELD_OUT = "held_out"
"""The column of the held-out reward, which is only logged."""


@dataclass(frozen=True)
class RolloutBatch:
    """Rollouts in groups, one group a prompt."""

    groups: list[list[Rollout]]
    figures: Mapping[str, float]
    """Seconds and rates, named as in metrics.jsonl."""


@dataclass(frozen=True)
class Experience:
    """The rollouts of one update with their rewards."""

    prompts: list[Prompt]
    """The prompt of each rollout."""
    groups: list[list[Rollout]]
    result: RewardResult
    """Rewards before shaping."""
    held_out: RewardResult | None
    """Rewards of the held-out reward, which is only logged; None in updates without it."""
    times: Mapping[str, float]
    """Seconds and rates, named as in metrics.jsonl."""

    @property
    def rollouts(self) -> list[Rollout]:
        """All rollouts, in the order of `prompts` and of the rewards."""
        return [rollout for group in self.groups for rollout in group]

    @property
    def columns(self) -> dict[str, list[float]]:
        """Rewards that are only logged, by name."""
        held_out = {} if self.held_out is None else {HELD_OUT: self.held_out.rewards}
        return {**self.result.columns, **held_out}


def sample_rollouts(
    model: PeftModel | PreTrainedModel,
    engine: RolloutEngine,
    prompts: Sequence[Sequence[int]],
    *,
    samples: int,
    seed: int,
) -> RolloutBatch:
    """Send the policy's weights to the engine and sample each prompt `samples` times.

    Args:
        prompts: token ids.
    """
    started = time.perf_counter()
    engine.sync(model)
    synced = time.perf_counter()
    groups = engine.generate(prompts, samples=samples, seed=seed)
    sampled = time.perf_counter()
    tokens = sum(len(rollout.completion_ids) for group in groups for rollout in group)
    figures = {
        "time/sync": synced - started,
        "time/rollout": sampled - synced,
        "engine/tokens_per_second": tokens / (sampled - synced),
    }
    return RolloutBatch(groups, figures | engine.figures())


def score_rollouts(
    batch: RolloutBatch, prompts: Sequence[Prompt], rewards: Rewards, held_out: Rewards | None = None
) -> Experience:
    """Compute the reward of each rollout.

    Args:
        prompts: one for each group.
        held_out: a second reward, for the log.
    """
    started = time.perf_counter()
    repeated = list[Prompt]()
    for prompt, group in zip(prompts, batch.groups, strict=True):
        repeated += [replace(prompt)] * len(group)  # a copy: two draws of one prompt are two groups
    rollouts = [rollout for group in batch.groups for rollout in group]
    result = rewards.of(repeated, rollouts)
    held_out_result = None if held_out is None else held_out.of(repeated, rollouts)
    held_out_figures = {} if held_out_result is None else held_out_result.figures
    times = {
        **batch.figures,
        **{f"{HELD_OUT}/{name}": value for name, value in held_out_figures.items()},
        **result.figures,
        "time/score": time.perf_counter() - started,
    }
    return Experience(repeated, batch.groups, result, held_out_result, times)
