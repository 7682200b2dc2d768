"""REINFORCE as in NVIDIA's NeMo-Aligner: leave-one-out baseline over finished answers, without ratio and
clipping.

Defaults: 0.01 x the mean |log-ratio| over an answer's tokens subtracted from the reward; advantages are not
divided by a standard deviation; answers that were cut off give no gradient and are in no baseline.

Differences to NeMo-Aligner (nemo_aligner/algorithms/reinforce.py, utils/ppo_utils.py, and
models/nlp/gpt/megatron_gpt_reinforce_actor.py; micro_batch_size 1 as in conf/gpt_reinforce_actor.yaml), which
`compat: true` removes:

1. `loss_func` takes the mean over the tokens of a micro-batch of one answer, so tokens of short answers weigh
   more than those of long ones. Here: one mean over the tokens of the update (`reduction: token_mean`).
2. A micro-batch whose answer was cut off has the loss 0, but counts in the mean over micro-batches, so
   cut-off answers shrink the step. Here: the mean over counted answers.
3. `calculate_rloo_baseline` divides the sum over an unfinished answer's finished siblings by one less than
   their number. With one answer a micro-batch this changes only `advantage/std` (see 2).
4. The advantage is 0 if at most one answer of a group finished; here too.

Bugs of its loop that are not copied: all data-parallel ranks train on the same slice of the rollouts
(`ReinforceRolloutBatch.chunk`); prompts are skipped four times too fast (`consumed_samples`); further
optimizer steps on stale answers have no correction; equal prompts of an update form one group (here each draw
is a group).

Shapes: N answers of a micro-batch, M their tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from policy.algorithms.leave_one_out import LeaveOneOut
from policy.algorithms.protocol import MeasuredBatch, Objective
from policy.update.advantages import aligner_advantage
from policy.update.losses import Reduction, reinforce
from rlhf.config.algorithm import AlgorithmConfig
from rlhf.core.records import Rollout


@dataclass(frozen=True)
class Reinforce(LeaveOneOut):
    """REINFORCE with the leave-one-out baseline."""

    reduction: Reduction
    epochs: int = 1  # without a ratio, a second pass over stale answers would be uncorrected

    @classmethod
    def of(cls, config: AlgorithmConfig) -> Reinforce:
        """Build it from the config."""
        form = AlignerReinforce if config.compat else cls
        return form(config.unfinished, config.unfinished_reward, config.reduction)

    def denominator(self, rollouts: Sequence[Rollout]) -> float:
        """Number of counted answers or, for `token_mean`, of their tokens."""
        return self.counted_size(rollouts, self.reduction)

    def objective(
        self, logps_M: Tensor, measured: MeasuredBatch, advantages: Tensor, denominator: float
    ) -> Objective:
        """-A log pi over the counted answers."""
        if self.unfinished == "drop":
            advantages = advantages.masked_fill(~measured.finished_N, 0.0)
        loss = reinforce(
            logps_M, measured.answer_M, advantages, self.reduction, denominator, measured.importance_M
        )
        return Objective(loss, {})


@dataclass(frozen=True)
class AlignerReinforce(Reinforce):
    """REINFORCE with NeMo-Aligner's bugs."""

    def denominator(self, rollouts: Sequence[Rollout]) -> float:
        """Number of answers, including those without a loss."""
        return float(len(rollouts))

    def group_advantages(self, rewards_PG: Tensor, counted_PG: Tensor) -> Tensor:
        """advantages_PG by NeMo-Aligner's formula."""
        return aligner_advantage(rewards_PG, counted_PG)
