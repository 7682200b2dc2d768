"""RLOO as TRL's RLOOTrainer computes it, number for number.

Defaults: 0.05 x the sum of log-ratios subtracted from the reward; leave-one-out baseline over all answers,
finished or not; PPO's clipped loss with one ratio per answer, which is 1 in a single pass over fresh answers.

Not implemented: TRL's `normalize_advantages` (False there by default). `reward_clip_range` is
`reward_shaping.clip`; `num_iterations` over mini-batches is `epochs`, whole passes over the update.

Shapes: N answers of a micro-batch, M their tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from policy.algorithms.leave_one_out import LeaveOneOut
from policy.algorithms.protocol import MeasuredBatch, Objective
from policy.update.losses import clipped_sequence_ratio
from rlhf.config.algorithm import AlgorithmConfig
from rlhf.core.records import Rollout
from rlhf.kernels.tensors import segment_mean


@dataclass(frozen=True)
class RLOO(LeaveOneOut):
    """Leave-one-out advantages and a clipped ratio per answer."""

    clip: tuple[float, float]
    epochs: int

    @classmethod
    def of(cls, config: AlgorithmConfig) -> RLOO:
        """Build it from the config."""
        assert config.clip_range is not None  # validated by the config
        return cls(config.unfinished, config.unfinished_reward, config.clip_range, config.epochs)

    def denominator(self, rollouts: Sequence[Rollout]) -> float:
        """The number of answers."""
        return float(len(rollouts))

    def objective(
        self, logps_M: Tensor, measured: MeasuredBatch, advantages: Tensor, denominator: float
    ) -> Objective:
        """-min(ratio A, clipped ratio A) with importance weights per answer."""
        weights_N = None
        if measured.importance_M is not None:
            weights_N = segment_mean(measured.importance_M, measured.answer_M, len(advantages))
        loss, clipped_N = clipped_sequence_ratio(
            logps_M, measured.logps_M, measured.answer_M, advantages, self.clip, denominator, weights_N
        )
        return Objective(loss, {"ratio/clipped_share": clipped_N.sum()})
