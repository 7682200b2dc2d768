"""Rewards by a reward model that is one more role on the policy's own base."""

from __future__ import annotations

from collections.abc import Sequence

from reward.scorer import Scorer
from rlhf.core.records import Message, Prompt, Rollout


class SharedReward:
    """A scorer that hangs on the policy's base."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def of(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> list[float]:
        """The reward of each answer, read as text after its prompt; answers of one prompt that follow one another share it."""
        conversations = [
            (*prompt.messages, Message("assistant", rollout.text))
            for prompt, rollout in zip(prompts, rollouts, strict=True)
        ]
        return [score.reward for score in self.scorer.score(conversations)]
