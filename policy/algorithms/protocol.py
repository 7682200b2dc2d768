"""What the loop asks of an algorithm.

Shapes: N answers of a row (whole groups of `group_size`), M their tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from rlhf.core.records import Rollout


@dataclass(frozen=True)
class Measured:
    """A row's answers as they were when sampled: constants of the update, whatever the number of passes over it."""

    rewards_N: Tensor
    """As the scorer gave them."""
    penalty_N: Tensor
    """What the KL takes from an answer's reward; 0 where the KL stands in the loss."""
    finished_N: Tensor
    answer_M: Tensor
    """Which answer a token belongs to."""
    logps_M: Tensor
    """Log-probabilities by the policy that the answers were sampled from."""
    reference_M: Tensor
    """Log-probabilities by the reference."""
    importance_M: Tensor | None
    """Importance weights of trainer over engine; None is 1 throughout."""
    group_size: int


@dataclass(frozen=True)
class Objective:
    """What is minimised, and the algorithm's own figures of the row, each summed over its answers."""

    loss: Tensor
    figures: dict[str, float]


class Algorithm(Protocol):
    """One way from rewards to a loss; the loop samples, measures, charges the KL and steps.

    `advantages` is for the algorithm alone to read: one for each answer here, one for each token where there is a critic.
    """

    @property
    def epochs(self) -> int:
        """Passes over the answers of one update, each ending with a step of the optimizer."""
        ...

    def counted(self, rollouts: Sequence[Rollout]) -> list[bool]:
        """Which answers take part in the update."""
        ...

    def denominator(self, rollouts: Sequence[Rollout]) -> float:
        """This process's share of what the loss is divided by."""
        ...

    def advantages(self, measured: Measured) -> Tensor:
        """What each answer, or each token, is worth."""
        ...

    def objective(
        self, logps_M: Tensor, measured: Measured, advantages: Tensor, denominator: float
    ) -> Objective:
        """The row's share of the update's loss, with gradient to `logps_M`."""
        ...
