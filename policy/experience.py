"""Before an update: the answers it learns from, and what they were worth."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from policy.rewards.protocol import Rewards
from policy.rollouts.protocol import RolloutEngine
from rlhf.core.chat import Chat
from rlhf.core.models import PeftModel
from rlhf.core.records import Prompt, Rollout


@dataclass(frozen=True)
class Experience:
    """The answers of one update, in groups of one prompt, with their rewards."""

    prompts: list[Prompt]
    """One for each answer."""
    groups: list[list[Rollout]]
    rewards: list[float]
    times: Mapping[str, float]
    """Seconds and rates, named as in metrics.jsonl."""

    @property
    def rollouts(self) -> list[Rollout]:
        """All answers, in the order of `prompts` and `rewards`."""
        return [rollout for group in self.groups for rollout in group]


def gather(
    model: PeftModel,
    engine: RolloutEngine,
    rewards: Rewards,
    chat: Chat,
    prompts: Sequence[Prompt],
    *,
    samples: int,
    seed: int,
) -> Experience:
    """Hand the policy to the engine, sample `samples` answers to each prompt, and reward them."""
    ids = [chat.prompt_ids(prompt.messages) for prompt in prompts]
    started = time.perf_counter()
    engine.sync(model)
    synced = time.perf_counter()
    groups = engine.generate(ids, samples=samples, seed=seed)
    sampled = time.perf_counter()
    answered = [prompt for prompt, group in zip(prompts, groups, strict=True) for _ in group]
    rollouts = [rollout for group in groups for rollout in group]
    given = rewards.of(answered, rollouts)
    scored = time.perf_counter()
    times = {
        "time/sync": synced - started,
        "time/rollout": sampled - synced,
        "time/score": scored - sampled,
        "engine/tokens_per_second": sum(len(rollout.completion_ids) for rollout in rollouts)
        / (sampled - synced),
    }
    return Experience(answered, groups, given, times)
