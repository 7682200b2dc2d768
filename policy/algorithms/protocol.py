"""The interface between the training loop and an algorithm.

Shapes: N answers of a micro-batch (whole groups of `group_size`), M their tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rlhf.core.records import Rollout
from rlhf.kernels.tensors import segment_sum

AllReduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all ranks."""


@dataclass(frozen=True)
class MeasuredBatch:
    """A micro-batch as measured under the policy that sampled it: constants of the update, in all its
    epochs."""

    rewards_N: Tensor
    """Shaped rewards; NaN where an answer has none."""
    penalty_M: Tensor
    """KL penalty of each token in units of reward; 0 where the KL is a term of the loss."""
    finished_N: Tensor
    answer_M: Tensor
    """Index of the answer of each token."""
    logps_M: Tensor
    """Log-probabilities of the policy that sampled the answers."""
    reference_M: Tensor
    """Log-probabilities of the reference."""
    importance_M: Tensor | None
    """Importance weights of trainer over engine; None is 1 throughout."""
    group_size: int
    values_M: Tensor | None = None
    """The critic's value before each token, where there is a critic."""

    @property
    def penalty_N(self) -> Tensor:
        """KL penalty of each answer."""
        return segment_sum(self.penalty_M, self.answer_M, len(self.rewards_N))

    @property
    def known_N(self) -> Tensor:
        """Mask of the answers that have a reward; the others take part in nothing."""
        return ~torch.isnan(self.rewards_N)


@dataclass(frozen=True)
class Advantages:
    """Advantages of a micro-batch: constants of the update."""

    values: Tensor
    """Per answer or, with a critic, per token."""
    returns_M: Tensor | None = None
    """The critic's targets, where there is a critic."""


@dataclass(frozen=True)
class Objective:
    """A loss, and the algorithm's figures of the micro-batch, each summed over its answers."""

    loss: Tensor
    figures: Mapping[str, Tensor | float]


class Critic(Protocol):
    """The loss of a critic."""

    def objective(
        self, values_M: Tensor, measured: MeasuredBatch, returns_M: Tensor, denominator: float
    ) -> Objective:
        """The micro-batch's share of the critic's loss, with gradient to `values_M`."""
        ...


class Algorithm(Protocol):
    """From rewards to a loss; the training loop samples, measures, adds the KL and steps.

    Answers without a reward are not passed to `counted` and `denominator`. `compute_advantages` and
    `objective` get them in their micro-batches and must give them no gradient and no influence on the
    advantages of others.
    """

    @property
    def epochs(self) -> int:
        """Passes over the answers of an update, each with an optimizer step."""
        ...

    def counted(self, rollouts: Sequence[Rollout]) -> list[bool]:
        """Which answers take part in the update."""
        ...

    def counted_rewards(self, measured: MeasuredBatch) -> tuple[Tensor, Tensor]:
        """(rewards_N, counted_N): rewards as the update uses them, and which answers take part."""
        ...

    def denominator(self, rollouts: Sequence[Rollout]) -> float:
        """This rank's share of the loss's denominator."""
        ...

    @property
    def critic(self) -> Critic | None:
        """With a critic all micro-batches are measured before the first loss.

        Without, each before its own loss.
        """
        ...

    def compute_advantages(
        self, batches: Sequence[MeasuredBatch], all_reduce: AllReduce
    ) -> tuple[list[Advantages], Mapping[str, Tensor | float]]:
        """Advantages of each micro-batch, and the algorithm's figures of the whole update.

        Args:
            batches: all of this rank with a critic, else one at a time.
        """
        ...

    def objective(
        self, logps_M: Tensor, measured: MeasuredBatch, advantages: Tensor, denominator: float
    ) -> Objective:
        """The micro-batch's share of the policy's loss, with gradient to `logps_M`."""
        ...
