"""Base of the algorithms without a critic, whose baseline is the other answers to the same prompt.

Shapes: N answers of a micro-batch, in whole groups; P prompts with G answers each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from policy.algorithms.counting import Counting
from policy.algorithms.protocol import Advantages, AllReduce, MeasuredBatch
from policy.update.advantages import leave_one_out


@dataclass(frozen=True)
class LeaveOneOut(Counting):
    """Leave-one-out advantages under the rule for unfinished answers."""

    @property
    def critic(self) -> None:
        """None: there is no critic."""
        return None

    def compute_advantages(
        self, batches: Sequence[MeasuredBatch], all_reduce: AllReduce
    ) -> tuple[list[Advantages], Mapping[str, Tensor | float]]:
        """Advantages per answer; groups are independent, so that nothing is reduced over ranks."""
        return [Advantages(self._advantages(measured)) for measured in batches], {}

    def _advantages(self, measured: MeasuredBatch) -> Tensor:
        """advantages_N of rewards minus KL penalties; 0 where an answer has no reward."""
        rewards_N, counted_N = self.counted_rewards(measured)
        shape = (-1, measured.group_size)
        penalised_PG = (rewards_N - measured.penalty_N).view(shape)
        advantages_PG = self.group_advantages(penalised_PG, counted_N.view(shape))
        return advantages_PG.flatten().masked_fill(~measured.known_N, 0.0)

    def group_advantages(self, rewards_PG: Tensor, counted_PG: Tensor) -> Tensor:
        """advantages_PG: each penalised reward against the others of its group."""
        return leave_one_out(rewards_PG, counted_PG)
