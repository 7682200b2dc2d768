"""PPO with a critic: generalised advantages per token, clipped ratios and clipped values.

Defaults as NeMo-Aligner (nemo_aligner/algorithms/ppo.py, utils/ppo_utils.py,
models/nlp/gpt/megatron_gpt_ppo_actor.py and megatron_gpt_critic.py): the KL is charged per token and the
reward added at the last one; GAE with discount 1 and lambda 0.95, whitened over the update; ratios and values
clipped at 0.2.

Differences:

1. The KL is k1 in place of |k1|, and each epoch passes over the whole update, as in TRL's former PPOTrainer.
2. A dropped unfinished answer is also left out of the whitening and of the critic's loss. NeMo-Aligner drops
   it from the policy's loss only.
3. Critic and policy are adapters on one base and share no trained weights. Their losses need no relative
   weight, and each has its own learning rate and gradient clipping.

The value after an answer's last token is 0, whether it finished or was cut off (no bootstrap): `keep` uses
the reward of the text as it is, `penalty` the penalty.

Shapes: N answers of a micro-batch, M their tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from policy.algorithms.counting import Counting
from policy.algorithms.protocol import Advantages, AllReduce, MeasuredBatch, Objective
from policy.update.advantages import (
    generalised_advantages,
    mean_and_variance,
    token_rewards,
)
from policy.update.losses import Reduction, clipped_token_ratio, clipped_value_loss
from rlhf.config.algorithm import AlgorithmConfig
from rlhf.core.records import Rollout
from rlhf.kernels.tensors import segment_mean

EPSILON = 1e-8
"""Added to the variance that advantages are divided by."""


@dataclass(frozen=True)
class PPO(Counting):
    """Generalised advantages and a clipped ratio per token, with a critic."""

    reduction: Reduction
    clip: tuple[float, float]
    epochs: int
    discount: float
    gae_lambda: float
    whiten: bool
    value_clip: float | None

    @classmethod
    def of(cls, config: AlgorithmConfig) -> PPO:
        """Build it from the config."""
        critic = config.critic
        assert config.clip_range is not None  # validated by the config
        assert critic is not None
        return cls(
            config.unfinished,
            config.unfinished_reward,
            config.reduction,
            config.clip_range,
            config.epochs,
            critic.discount,
            critic.gae_lambda,
            critic.whiten,
            critic.clip,
        )

    @property
    def critic(self) -> ValueLoss:
        """The critic's loss."""
        return ValueLoss(self)

    def denominator(self, rollouts: Sequence[Rollout]) -> float:
        """Number of counted answers or, for `token_mean`, of their tokens."""
        return self.counted_size(rollouts, self.reduction)

    def counted_M(self, measured: MeasuredBatch) -> Tensor:
        """Mask of the tokens of counted answers."""
        return self.counted_rewards(measured)[1][measured.answer_M]

    def compute_advantages(
        self, batches: Sequence[MeasuredBatch], all_reduce: AllReduce
    ) -> tuple[list[Advantages], Mapping[str, Tensor | float]]:
        """Advantages per token, whitened if configured, 0 for answers that are not counted; and returns."""
        advantages = [self._advantages(measured) for measured in batches]
        returns = [
            advantages_M + _values(measured)
            for advantages_M, measured in zip(advantages, batches, strict=True)
        ]
        counted = [self.counted_M(measured) for measured in batches]
        all_counted = torch.cat(counted)
        mean, variance = mean_and_variance(torch.cat(advantages), all_counted, all_reduce)
        return_mean, return_variance = mean_and_variance(torch.cat(returns), all_counted, all_reduce)
        if self.whiten:
            scale = (variance + EPSILON).sqrt()
            advantages = [
                ((advantages_M - mean) / scale).to(advantages_M.dtype) for advantages_M in advantages
            ]
        masked = [
            Advantages(advantages_M.masked_fill(~counted_M, 0.0), returns_M)
            for advantages_M, returns_M, counted_M in zip(advantages, returns, counted, strict=True)
        ]
        # return = value + advantage: the variance of the advantage is what the critic does not explain.
        return masked, {
            "advantage/std": variance.sqrt(),
            "return/mean": return_mean,
            "value/mean": return_mean - mean,
            "value/explained_variance": torch.where(return_variance > 0, 1 - variance / return_variance, 0.0),
        }

    def objective(
        self, logps_M: Tensor, measured: MeasuredBatch, advantages: Tensor, denominator: float
    ) -> Objective:
        """-min(ratio A, clipped ratio A) per token."""
        loss, clipped_M = clipped_token_ratio(
            logps_M,
            measured.logps_M,
            measured.answer_M,
            advantages,
            len(measured.rewards_N),
            self.reduction,
            self.clip,
            denominator,
            measured.importance_M,
        )
        return Objective(loss, {"ratio/clipped_share": _share(clipped_M, measured)})

    def _advantages(self, measured: MeasuredBatch) -> Tensor:
        rewards_N, counted_N = self.counted_rewards(measured)
        rewards_N = rewards_N.masked_fill(~counted_N, 0.0)
        rewards_M = token_rewards(rewards_N, measured.penalty_M, measured.answer_M)
        return generalised_advantages(
            rewards_M, _values(measured), measured.answer_M, self.discount, self.gae_lambda
        )


@dataclass(frozen=True)
class ValueLoss:
    """The critic's loss."""

    ppo: PPO

    def objective(
        self, values_M: Tensor, measured: MeasuredBatch, returns_M: Tensor, denominator: float
    ) -> Objective:
        """Half the squared error to the returns, over counted tokens."""
        loss, clipped_M = clipped_value_loss(
            values_M,
            _values(measured),
            returns_M,
            self.ppo.counted_M(measured),
            measured.answer_M,
            len(measured.rewards_N),
            self.ppo.reduction,
            self.ppo.value_clip,
            denominator,
        )
        return Objective(loss, {"value/clipped_share": _share(clipped_M, measured)})


def _values(measured: MeasuredBatch) -> Tensor:
    assert measured.values_M is not None  # the loop measures values for algorithms with a critic
    return measured.values_M


def _share(clipped_M: Tensor, measured: MeasuredBatch) -> Tensor:
    """Each answer's share of clipped tokens, summed over answers."""
    return segment_mean(clipped_M.double(), measured.answer_M, len(measured.rewards_N)).sum()
