"""What the loop asks of an algorithm.

Shapes: N answers of a row (whole groups of `group_size`), M their tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rlhf.core.records import Rollout
from rlhf.kernels.tensors import segment_sum

Total = Callable[[Tensor], Tensor]
"""The sum of a tensor over all processes."""


@dataclass(frozen=True)
class SampledRow:
    """A row's answers as they were when sampled: constants of the update, whatever the number of passes over it."""

    rewards_N: Tensor
    """As they were given and shaped; NaN where an answer has no reward."""
    penalty_M: Tensor
    """What the KL of each token takes from an answer's reward; 0 where the KL stands in the loss."""
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
    values_M: Tensor | None = None
    """What the critic expected before each token, where there is one."""

    @property
    def penalty_N(self) -> Tensor:
        """What the KL takes from the reward of each answer."""
        return segment_sum(self.penalty_M, self.answer_M, len(self.rewards_N))

    @property
    def known_N(self) -> Tensor:
        """Which answers have a reward; the others take no part in anything."""
        return ~torch.isnan(self.rewards_N)


@dataclass(frozen=True)
class Advantages:
    """What a row's answers are worth: constants of the update."""

    advantages: Tensor
    """One for each answer or, where there is a critic, for each token."""
    returns_M: Tensor | None = None
    """What the critic should have expected before each token."""


@dataclass(frozen=True)
class Objective:
    """What is minimised, and the algorithm's own figures of the row, each summed over its answers."""

    loss: Tensor
    figures: Mapping[str, Tensor | float]


class Critic(Protocol):
    """How a critic learns."""

    def objective(
        self, values_M: Tensor, measured: SampledRow, returns_M: Tensor, denominator: float
    ) -> Objective:
        """The row's share of the critic's loss, with gradient to `values_M`."""
        ...


class Algorithm(Protocol):
    """One way from rewards to a loss; the loop samples, measures, charges the KL and steps.

    Answers without a reward are kept from `counted` and `denominator`; `worth` and `objective` meet them in their rows, and
    give them neither a part in what others are worth nor a gradient.
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

    @property
    def critic(self) -> Critic | None:
        """Where there is one, all rows are measured before the first loss; else each on its way to its loss."""
        ...

    def worth(self, rows: Sequence[SampledRow], total: Total) -> tuple[list[Advantages], dict[str, float]]:
        """What the answers of each row are worth, and the algorithm's figures of the whole update.

        Args:
            rows: all of this process where there is a critic, else one at a time.
        """
        ...

    def objective(
        self, logps_M: Tensor, measured: SampledRow, advantages: Tensor, denominator: float
    ) -> Objective:
        """The row's share of the update's loss, with gradient to `logps_M`."""
        ...
