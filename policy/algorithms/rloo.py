"""RLOO as TRL's RLOOTrainer computes it, number for number.

By default: KL = sum of log-ratios, 0.05 of it taken from the reward; leave-one-out over all answers, cut off or not; PPO's clipped
objective with one ratio an answer, of which a single pass over fresh answers sees nothing but 1.

TRL's options that are not here: `normalize_advantages` (False there by default), `reward_clip_range`, `num_iterations` over
mini-batches (here `epochs`: whole passes over the update).

Shapes: N answers of a row, M their tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from policy.algorithms.leave_one_out import LeaveOneOut
from policy.algorithms.protocol import Objective, SampledRow
from policy.update.losses import clipped_sequence_ratio
from rlhf.config.algorithm import AlgorithmConfig
from rlhf.core.records import Rollout
from rlhf.kernels.tensors import segment_mean


@dataclass(frozen=True)
class RLOO(LeaveOneOut):
    """Leave-one-out advantages under a clipped ratio."""

    clip: tuple[float, float]
    epochs: int

    @classmethod
    def of(cls, config: AlgorithmConfig) -> RLOO:
        """As the config says."""
        assert config.clip_range is not None  # the config sees to it
        return cls(config.unfinished, config.unfinished_reward, config.clip_range, config.epochs)

    def denominator(self, rollouts: Sequence[Rollout]) -> float:
        """All answers."""
        return float(len(rollouts))

    def objective(
        self, logps_M: Tensor, measured: SampledRow, advantages: Tensor, denominator: float
    ) -> Objective:
        """-min(ratio A, clipped ratio A); importance weights are those of whole answers."""
        weights_N = None
        if measured.importance_M is not None:
            weights_N = segment_mean(measured.importance_M, measured.answer_M, len(advantages))
        loss, clipped_N = clipped_sequence_ratio(
            logps_M, measured.logps_M, measured.answer_M, advantages, self.clip, denominator, weights_N
        )
        return Objective(loss, {"ratio/clipped_share": clipped_N.sum()})
