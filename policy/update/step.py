"""One update's mathematics, row by row: what the answers were when sampled, and what is minimised.

Shapes: N answers of a row, M their tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from policy.algorithms.protocol import Advantages, Algorithm, SampledRow, Total
from policy.rollouts.probe import EngineProbe
from policy.update.importance import engine_logps, importance_weights
from policy.update.kl import kl_charges, kl_loss
from policy.update.rows import Row
from policy.update.statistics import UpdateStatistics
from rlhf.config.algorithm import KLConfig
from rlhf.config.rollouts import ImportanceConfig
from rlhf.kernels.tensors import segment_sum


@dataclass(frozen=True)
class Update:
    """Turns the rows of one update into losses, and keeps their figures: `measure`, then `settle`, then the losses of each pass.

    Args:
        algorithm: from rewards to a loss.
        kl: how the KL is computed, and where it stands.
        coefficient: of the KL, now.
        importance: how the engine's mismatch is corrected; None leaves it.
        group_size: answers to a prompt.
        loss_denominator: of the algorithm's terms, over the whole update and all processes.
        counted: answers that take part, over the whole update and all processes.
        total: sums a tensor over all processes.
    """

    algorithm: Algorithm
    kl: KLConfig
    coefficient: float
    importance: ImportanceConfig | None
    group_size: int
    loss_denominator: float
    counted: float
    statistics: UpdateStatistics
    probe: EngineProbe
    total: Total
    settled: list[tuple[SampledRow, Advantages]] = field(default_factory=list)
    """Rows with their worth, in the order they came."""
    own_figures: dict[str, float] = field(default_factory=dict)
    """The algorithm's, of the whole update."""

    def measure(
        self,
        row: Row,
        rewards_N: Tensor,
        logps_M: Tensor,
        reference_M: Tensor,
        entropy_M: Tensor,
        answer_M: Tensor,
        values_M: Tensor | None = None,
    ) -> SampledRow:
        """A row as it was sampled."""
        answers = len(row.answers)
        engine_M = engine_logps(row.rollouts, like=logps_M)
        self.probe.add(engine_M, logps_M, reference_M, answer_M, answers)
        weights_M = None
        if self.importance is not None and engine_M is not None:
            level, cap = self.importance.level, self.importance.cap
            weights_M = importance_weights(logps_M, engine_M, answer_M, answers, level, cap)
        log_ratio_M = logps_M - reference_M
        charged_M = kl_charges(log_ratio_M, answer_M, answers, self.kl.estimator, self.kl.reduction)
        in_reward = self.kl.placement == "reward"
        measured = SampledRow(
            rewards_N=rewards_N,
            penalty_M=self.coefficient * charged_M if in_reward else torch.zeros_like(charged_M),
            finished_N=torch.tensor([rollout.finished for rollout in row.rollouts], device=logps_M.device),
            answer_M=answer_M,
            logps_M=logps_M,
            reference_M=reference_M,
            importance_M=weights_M,
            group_size=self.group_size,
            values_M=values_M,
        )
        charged_N = segment_sum(charged_M, answer_M, answers)
        self.statistics.add(row.answers, measured, charged_N=charged_N, entropy_M=entropy_M)
        return measured

    def settle(self, rows: Sequence[SampledRow]) -> None:
        """Find what the answers of some rows are worth: of all of them, or of one on its way to its loss."""
        worths, figures = self.algorithm.worth(rows, self.total)
        self.settled.extend(zip(rows, worths, strict=True))
        self.own_figures.update(figures)
        self.statistics.advantages.extend(worth.advantages for worth in worths)

    def loss(self, number: int, row: Row, logps_M: Tensor) -> Tensor:
        """A row's share of the policy's loss, the KL included where it stands in the loss."""
        measured, worth = self.settled[number]
        objective = self.algorithm.objective(logps_M, measured, worth.advantages, self.loss_denominator)
        loss, terms = objective.loss, {"loss/policy": objective.loss.detach()}
        if self.kl.placement == "loss":
            counted_N = torch.tensor(self.algorithm.counted(row.rollouts), device=logps_M.device)
            counted_N = counted_N & measured.known_N
            kl = self.coefficient * kl_loss(
                logps_M,
                measured.reference_M,
                measured.answer_M,
                counted_N,
                self.kl.estimator,
                self.kl.reduction,
                self.counted,
            )
            loss, terms["loss/kl"] = loss + kl, kl.detach()
        self.statistics.add_losses(terms, objective.figures)
        return loss

    def value_loss(self, number: int, values_M: Tensor) -> Tensor:
        """A row's share of the critic's loss."""
        critic, (measured, worth) = self.algorithm.critic, self.settled[number]
        assert critic is not None  # asked for where there is one, and it has returns then
        assert worth.returns_M is not None
        objective = critic.objective(values_M, measured, worth.returns_M, self.loss_denominator)
        self.statistics.add_losses({"loss/value": objective.loss.detach()}, objective.figures)
        return objective.loss
