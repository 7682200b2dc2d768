"""One update's mathematics, row by row: what the answers were when sampled, and what is minimised.

Shapes: N answers of a row, M their tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from policy.algorithms.protocol import Algorithm, Measured
from policy.importance import engine_logps, importance_weights
from policy.kl import kl_loss, kl_of_answers
from policy.probe import EngineProbe
from policy.rows import Row
from policy.statistics import UpdateStatistics
from rlhf.config.algorithm import KLConfig
from rlhf.config.rollouts import ImportanceConfig
from rlhf.core.records import Rollout


@dataclass(frozen=True)
class Update:
    """Turns the rows of one update into losses, and keeps their figures.

    Args:
        algorithm: from rewards to a loss.
        kl: how the KL is computed, and where it stands.
        coefficient: of the KL, now.
        importance: how the engine's mismatch is corrected; None leaves it.
        group_size: answers to a prompt.
        loss_denominator: of the algorithm's term, over the whole update and all processes.
        counted: answers that take part, over the whole update and all processes.
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

    def measure(
        self,
        row: Row,
        rewards_N: Tensor,
        logps_M: Tensor,
        reference_M: Tensor,
        entropy_M: Tensor,
        answer_M: Tensor,
    ) -> tuple[Measured, Tensor]:
        """A row as it was sampled, and its advantages."""
        answers = len(row.answers)
        engine_M = engine_logps(row.rollouts, like=logps_M)
        self.probe.add(engine_M, logps_M, reference_M, answer_M, answers)
        weights_M = None
        if self.importance is not None and engine_M is not None:
            level, cap = self.importance.level, self.importance.cap
            weights_M = importance_weights(logps_M, engine_M, answer_M, answers, level, cap)
        log_ratio_M = logps_M - reference_M
        charged_N = kl_of_answers(log_ratio_M, answer_M, answers, self.kl.estimator, self.kl.reduction)
        in_reward = self.kl.placement == "reward"
        measured = Measured(
            rewards_N=rewards_N,
            penalty_N=self.coefficient * charged_N if in_reward else torch.zeros_like(charged_N),
            finished_N=torch.tensor([rollout.finished for rollout in row.rollouts], device=logps_M.device),
            answer_M=answer_M,
            logps_M=logps_M,
            reference_M=reference_M,
            importance_M=weights_M,
            group_size=self.group_size,
        )
        advantages = self.algorithm.advantages(measured)
        self.statistics.add(
            row.answers, measured, advantages=advantages, charged_N=charged_N, entropy_M=entropy_M
        )
        return measured, advantages

    def loss(
        self, logps_M: Tensor, rollouts: Sequence[Rollout], measured: Measured, advantages: Tensor
    ) -> Tensor:
        """The row's share of the loss, the KL included where it stands in the loss."""
        objective = self.algorithm.objective(logps_M, measured, advantages, self.loss_denominator)
        loss, terms = objective.loss, {"loss/policy": objective.loss.item()}
        if self.kl.placement == "loss":
            counted_N = torch.tensor(self.algorithm.counted(rollouts), device=logps_M.device)
            kl = self.coefficient * kl_loss(
                logps_M,
                measured.reference_M,
                measured.answer_M,
                counted_N,
                self.kl.estimator,
                self.kl.reduction,
                self.counted,
            )
            loss, terms["loss/kl"] = loss + kl, kl.item()
        self.statistics.add_losses(terms, objective.figures)
        return loss
