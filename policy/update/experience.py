"""Before an update: the answers it learns from, and what they were worth."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from policy.rewards.protocol import RewardResult, Rewards
from policy.rollouts.protocol import RolloutEngine
from rlhf.core.records import Prompt, Rollout
from rlhf.models.loading import PeftModel

HELD_OUT = "held_out"
"""The column of a reward that nothing is learned from."""


@dataclass(frozen=True)
class Experience:
    """The answers of one update, in groups of one prompt, with their rewards."""

    prompts: list[Prompt]
    """One for each answer."""
    groups: list[list[Rollout]]
    given: RewardResult
    """Their rewards, as they were given."""
    held_out: RewardResult | None
    """What a reward that nothing is learnt from says of them; None where it was not asked."""
    times: Mapping[str, float]
    """Seconds and rates, named as in metrics.jsonl."""

    @property
    def rollouts(self) -> list[Rollout]:
        """All answers, in the order of `prompts` and of the rewards."""
        return [rollout for group in self.groups for rollout in group]

    @property
    def columns(self) -> dict[str, list[float]]:
        """Rewards for the log alone, by name."""
        held_out = {} if self.held_out is None else {HELD_OUT: self.held_out.rewards}
        return {**self.given.columns, **held_out}


@dataclass(frozen=True)
class Answers:
    """Answers in groups of one prompt, and what it took to have them."""

    groups: list[list[Rollout]]
    figures: Mapping[str, float]
    """Seconds and rates, named as in metrics.jsonl."""


def sample(
    model: PeftModel | PreTrainedModel,
    engine: RolloutEngine,
    prompts: Sequence[Sequence[int]],
    *,
    samples: int,
    seed: int,
) -> Answers:
    """Hand the policy to the engine and have it answer each prompt `samples` times."""
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
    return Answers(groups, figures | engine.figures())


def score_answers(
    answers: Answers, prompts: Sequence[Prompt], rewards: Rewards, held_out: Rewards | None = None
) -> Experience:
    """Reward the answers to each prompt.

    Args:
        held_out: is asked too, for the log alone.
    """
    started = time.perf_counter()
    answered = [prompt for prompt, group in zip(prompts, answers.groups, strict=True) for _ in group]
    rollouts = [rollout for group in answers.groups for rollout in group]
    given = rewards.of(answered, rollouts)
    watched = None if held_out is None else held_out.of(answered, rollouts)
    watched_figures = {} if watched is None else watched.figures
    times = {
        **answers.figures,
        **watched_figures,
        **given.figures,
        "time/score": time.perf_counter() - started,
    }
    return Experience(answered, answers.groups, given, watched, times)
