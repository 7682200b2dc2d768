"""Rewards by principles in words: one adapter on the policy's base scores every principle."""

from __future__ import annotations

from collections.abc import Sequence

from policy.rewards.model import conversations_of
from policy.rewards.protocol import Missing, RewardTerm
from reward.principle.scorer import PrincipleScorer
from reward.scorer import Score, score_in_step
from rlhf.core.errors import RlhfError
from rlhf.core.records import Prompt, Rollout


class PrincipleReward:
    """The mean score over all principles; `columns` has one reward term per principle.

    The answers of a call are scored once by all principles, which share the computation of the conversation.
    """

    def __init__(self, scorer: PrincipleScorer) -> None:
        self.scorer = scorer
        self._answers: Sequence[Rollout] | None = None
        self._scores: Sequence[Score | RlhfError] = ()

    def columns(self, name: str) -> dict[str, RewardTerm]:
        """Reward terms by name in the log: `name`, or with several principles `name.1`, `name.2`, ..."""
        principles = self.scorer.principles
        if len(principles) == 1:
            return {name: self}
        return {f"{name}.{index + 1}": _Column(self, principle) for index, principle in enumerate(principles)}

    def of(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> list[float | Missing]:
        """The mean score of each answer over the principles."""
        return [
            Missing(score.found) if isinstance(score, RlhfError) else score.reward
            for score in self.scores(prompts, rollouts)
        ]

    def scores(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> Sequence[Score | RlhfError]:
        """The scores of each answer by every principle; the same list of answers is scored once."""
        if rollouts is not self._answers:
            self._scores = score_in_step(self.scorer, conversations_of(prompts, rollouts))
            self._answers = rollouts
        return self._scores


class _Column:
    """The scores by one principle as a reward term."""

    def __init__(self, reward: PrincipleReward, principle: str) -> None:
        self.reward, self.principle = reward, principle

    def of(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> list[float | Missing]:
        """The score of each answer by one principle."""
        return [
            Missing(score.found) if isinstance(score, RlhfError) else score.attributes[self.principle]
            for score in self.reward.scores(prompts, rollouts)
        ]
