"""REINFORCE as NVIDIA's authors wrote it in NeMo-Aligner: leave-one-out over finished answers, no ratio, no clipping.

By default: KL = mean |log-ratio| over an answer's tokens, 0.01 of it taken from the reward; no normalisation by a standard
deviation; answers that were cut off give no gradient and take no part in a baseline.

What NeMo-Aligner (nemo_aligner/algorithms/reinforce.py, nemo_aligner/models/nlp/gpt/megatron_gpt_reinforce_actor.py,
nemo_aligner/utils/ppo_utils.py; micro_batch_size 1 as in conf/gpt_reinforce_actor.yaml) does otherwise, and `compat: true` does too:

1. `loss_func` takes the mean over the tokens of a micro-batch, which holds one answer: every answer weighs the same, and so a
   token of a short answer more than one of a long answer. Here: one mean over the tokens of the update (`reduction: token_mean`).
2. A micro-batch whose answer did not end gives a loss of 0, and is counted in the mean over micro-batches: the more answers
   are cut off, the smaller the step. Here: the mean is over the answers that count.
3. `calculate_rloo_baseline` divides the sum over an unfinished answer's finished siblings by one less than their number. At
   one answer a micro-batch it has no effect on the loss (see 2), but it is in `advantage/std`.
4. Where at most one answer of a group ended, the baseline is the reward itself: advantage 0. Here: the same.

Not copied, in either form: that every data-parallel rank trains on the same slice of the rollouts (`ReinforceRolloutBatch.chunk`),
that prompts are skipped four times too fast (`consumed_samples`), further optimizer steps on stale answers without a correction,
and that equal prompts of one update are one group (groups here are draws). These are the loop's, not the method's.

Shapes: N answers of a row, M their tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from policy.algorithms.leave_one_out import LeaveOneOut
from policy.algorithms.protocol import Objective, SampledRow
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
        """As the config says."""
        form = AlignerReinforce if config.compat else cls
        return form(config.unfinished, config.unfinished_reward, config.reduction)

    def denominator(self, rollouts: Sequence[Rollout]) -> float:
        """The answers that count or, for `token_mean`, their tokens."""
        return self.counted_size(rollouts, self.reduction)

    def objective(
        self, logps_M: Tensor, measured: SampledRow, advantages: Tensor, denominator: float
    ) -> Objective:
        """-A log pi, without the answers that the rule drops."""
        if self.unfinished == "drop":
            advantages = advantages.masked_fill(~measured.finished_N, 0.0)
        loss = reinforce(
            logps_M, measured.answer_M, advantages, self.reduction, denominator, measured.importance_M
        )
        return Objective(loss, {})


@dataclass(frozen=True)
class AlignerReinforce(Reinforce):
    """REINFORCE with NeMo-Aligner's slips."""

    def denominator(self, rollouts: Sequence[Rollout]) -> float:
        """All answers, those without a loss included."""
        return float(len(rollouts))

    def compare(self, rewards_PG: Tensor, counted_PG: Tensor) -> Tensor:
        """Each penalised reward against the rest of its group, divisor and all."""
        return aligner_advantage(rewards_PG, counted_PG)
