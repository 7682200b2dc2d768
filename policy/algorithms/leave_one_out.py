"""What the algorithms without a critic share: an answer is judged against its siblings.

Shapes: N answers of a row, in whole groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from policy.advantages import Unfinished, by_unfinished_rule, leave_one_out
from policy.algorithms.protocol import Measured
from rlhf.core.records import Rollout


@dataclass(frozen=True)
class LeaveOneOut:
    """Advantages by the leave-one-out baseline, under a rule for unfinished answers."""

    unfinished: Unfinished
    unfinished_reward: float | None

    def counted(self, rollouts: Sequence[Rollout]) -> list[bool]:
        """All answers, or the finished ones where the rule drops the others."""
        return [rollout.finished or self.unfinished != "drop" for rollout in rollouts]

    def advantages(self, measured: Measured) -> Tensor:
        """One for each answer: its penalised reward against its siblings'."""
        rewards_N, counted_N = by_unfinished_rule(
            measured.rewards_N, measured.finished_N, self.unfinished, self.unfinished_reward
        )
        shape = (-1, measured.group_size)
        worth_PG = (rewards_N - measured.penalty_N).view(shape)
        return self.compare(worth_PG, counted_N.view(shape)).flatten()

    def compare(self, rewards_PG: Tensor, counted_PG: Tensor) -> Tensor:
        """Each penalised reward against the rest of its group."""
        return leave_one_out(rewards_PG, counted_PG)
