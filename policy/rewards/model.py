"""Rewards by a reward model in this process: an adapter on the policy's base, or a separate model."""

from __future__ import annotations

from collections.abc import Sequence

from policy.rewards.protocol import Missing
from reward.load_scorer import PlainScorer
from reward.principle.scorer import PrincipleScorer
from reward.scorer import Scorer, score_in_step
from rlhf.core.errors import RlhfError
from rlhf.core.records import Conversation, Message, Prompt, Rollout


class ModelReward:
    """Rewards of a scorer for the prompt followed by the answer's text."""

    def __init__(self, scorer: Scorer | PlainScorer | PrincipleScorer) -> None:
        self.scorer = scorer

    def of(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> list[float | Missing]:
        """The reward of each answer; adjacent answers to one prompt share the prompt's computation."""
        scores = score_in_step(self.scorer, conversations_of(prompts, rollouts))
        return [
            Missing(score.found, score.fix) if isinstance(score, RlhfError) else float(score.reward)
            for score in scores
        ]


def conversations_of(prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> list[Conversation]:
    """Each prompt followed by its answer."""
    return [
        (*prompt.messages, Message("assistant", rollout.text))
        for prompt, rollout in zip(prompts, rollouts, strict=True)
    ]
