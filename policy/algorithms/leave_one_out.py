"""What the algorithms without a critic share: an answer is judged against its siblings.

Shapes: N answers of a row, in whole groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from policy.algorithms.counting import Counting
from policy.algorithms.protocol import Advantages, SampledRow, Total
from policy.update.advantages import by_unfinished_rule, leave_one_out


@dataclass(frozen=True)
class LeaveOneOut(Counting):
    """Advantages by the leave-one-out baseline, under a rule for unfinished answers."""

    @property
    def critic(self) -> None:
        """None: the siblings are the baseline."""
        return None

    def worth(self, rows: Sequence[SampledRow], total: Total) -> tuple[list[Advantages], dict[str, float]]:
        """The advantages of each row, which need no other."""
        return [Advantages(self.advantages(measured)) for measured in rows], {}

    def advantages(self, measured: SampledRow) -> Tensor:
        """One for each answer: its penalised reward against its siblings'; 0 where it has none."""
        rewards_N, counted_N = by_unfinished_rule(
            measured.rewards_N, measured.finished_N, self.unfinished, self.unfinished_reward
        )
        shape, known_N = (-1, measured.group_size), measured.known_N
        worth_PG = (rewards_N - measured.penalty_N).view(shape)
        return self.compare(worth_PG, (counted_N & known_N).view(shape)).flatten().masked_fill(~known_N, 0.0)

    def compare(self, rewards_PG: Tensor, counted_PG: Tensor) -> Tensor:
        """Each penalised reward against the rest of its group."""
        return leave_one_out(rewards_PG, counted_PG)
