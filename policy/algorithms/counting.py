"""Select the answers that an update counts, and compute the denominator of its loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from policy.algorithms.protocol import MeasuredBatch
from policy.update.advantages import Unfinished, apply_unfinished_rule
from policy.update.losses import Reduction
from rlhf.core.records import Rollout


@dataclass(frozen=True)
class Counting:
    """Counts answers under the rule for unfinished ones; base of all algorithms."""

    unfinished: Unfinished
    unfinished_reward: float | None

    def counted(self, rollouts: Sequence[Rollout]) -> list[bool]:
        """All answers, or the finished ones where the rule drops the others."""
        return [rollout.finished or self.unfinished != "drop" for rollout in rollouts]

    def counted_rewards(self, measured: MeasuredBatch) -> tuple[Tensor, Tensor]:
        """(rewards_N, counted_N): rewards under the rule for unfinished answers, and which take part."""
        rewards_N, counted_N = apply_unfinished_rule(
            measured.rewards_N, measured.finished_N, self.unfinished, self.unfinished_reward
        )
        return rewards_N, counted_N & measured.known_N

    def counted_size(self, rollouts: Sequence[Rollout], reduction: Reduction) -> float:
        """Number of counted answers or, for `token_mean`, of their tokens."""
        counted = [
            rollout for rollout, counts in zip(rollouts, self.counted(rollouts), strict=True) if counts
        ]
        if reduction == "token_mean":
            return float(sum(len(rollout.completion_ids) for rollout in counted))
        return float(len(counted))
