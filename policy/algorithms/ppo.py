"""PPO: a critic says what to expect before each token, and a token is worth what came beyond that.

By default as NeMo-Aligner (nemo_aligner/algorithms/ppo.py, utils/ppo_utils.py, models/nlp/gpt/megatron_gpt_ppo_actor.py and
megatron_gpt_critic.py): the KL is charged token by token, the reward comes with the last one; generalised advantages with
discount 1 and lambda 0.95, whitened over the update; ratio and values clipped at 0.2.

Otherwise than there:

1. The KL is k1 in place of |k1|, and there are several passes over the whole update in place of one in parts, as in TRL's former
   PPOTrainer.
2. An answer that the rule drops takes no part: neither in the whitening nor in what the critic learns. NeMo-Aligner drops it
   from the policy's loss alone.
3. Critic and policy are adapters on one base. They share no weight, so that their losses need no weighing against each other; each
   has a learning rate, and a gradient that is clipped by its own norm.

After an answer's last token nothing is expected, be it finished or cut off: `keep` takes the reward of the text as it stands for all
that came, and `penalty` the penalty. What a cut-off answer might have come to is not put in its place (no bootstrap).

Shapes: N answers of a row, M their tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from policy.algorithms.counting import Counting
from policy.algorithms.protocol import Advantages, Objective, SampledRow, Total
from policy.update.advantages import (
    by_unfinished_rule,
    generalised_advantages,
    mean_and_variance,
    token_rewards,
)
from policy.update.losses import Reduction, clipped_token_ratio, clipped_value_loss
from rlhf.config.algorithm import AlgorithmConfig
from rlhf.core.records import Rollout
from rlhf.kernels.tensors import segment_mean

EPSILON = 1e-8
"""Beside the variance by which advantages are scaled."""


@dataclass(frozen=True)
class PPO(Counting):
    """Generalised advantages under a clipped ratio, and the critic they come from."""

    reduction: Reduction
    clip: tuple[float, float]
    epochs: int
    discount: float
    gae_lambda: float
    whiten: bool
    value_clip: float | None

    @classmethod
    def of(cls, config: AlgorithmConfig) -> PPO:
        """As the config says."""
        critic = config.critic
        assert config.clip_range is not None  # the config sees to both
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
        """How the critic learns."""
        return ValueLoss(self)

    def denominator(self, rollouts: Sequence[Rollout]) -> float:
        """The answers that count or, for `token_mean`, their tokens."""
        return self.counted_size(rollouts, self.reduction)

    def counted_M(self, measured: SampledRow) -> Tensor:
        """Which tokens take part."""
        return self._rewarded(measured)[1][measured.answer_M]

    def worth(self, rows: Sequence[SampledRow], total: Total) -> tuple[list[Advantages], dict[str, float]]:
        """Advantages, whitened where that is asked for, and returns of every token; 0 where it does not count."""
        advantages = [self._advantages(measured) for measured in rows]
        returns = [one + _values(measured) for one, measured in zip(advantages, rows, strict=True)]
        counted = [self.counted_M(measured) for measured in rows]
        every = torch.cat(counted)
        mean, variance = mean_and_variance(torch.cat(advantages)[every], total)
        return_mean, return_variance = mean_and_variance(torch.cat(returns)[every], total)
        if self.whiten:
            advantages = [(one - mean) / math.sqrt(variance + EPSILON) for one in advantages]
        kept = [
            Advantages(one.masked_fill(~counts, 0.0), back)
            for one, back, counts in zip(advantages, returns, counted, strict=True)
        ]
        # A return is a value and its advantage: the advantage is what the critic did not foresee.
        return kept, {
            "advantage/std": math.sqrt(variance),
            "return/mean": return_mean,
            "value/mean": return_mean - mean,
            "value/explained_variance": 1 - variance / return_variance if return_variance else 0.0,
        }

    def objective(
        self, logps_M: Tensor, measured: SampledRow, advantages: Tensor, denominator: float
    ) -> Objective:
        """-min(ratio A, clipped ratio A), token by token."""
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

    def _advantages(self, measured: SampledRow) -> Tensor:
        rewards_N, _ = self._rewarded(measured)
        rewards_M = token_rewards(rewards_N, measured.penalty_M, measured.answer_M)
        return generalised_advantages(
            rewards_M, _values(measured), measured.answer_M, self.discount, self.gae_lambda
        )

    def _rewarded(self, measured: SampledRow) -> tuple[Tensor, Tensor]:
        rewards_N, counted_N = by_unfinished_rule(
            measured.rewards_N, measured.finished_N, self.unfinished, self.unfinished_reward
        )
        counted_N = counted_N & measured.known_N
        return rewards_N.masked_fill(~counted_N, 0.0), counted_N


@dataclass(frozen=True)
class ValueLoss:
    """How the critic of PPO learns."""

    ppo: PPO

    def objective(
        self, values_M: Tensor, measured: SampledRow, returns_M: Tensor, denominator: float
    ) -> Objective:
        """Half the squared distance to the returns, without the answers that do not count."""
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


def _values(measured: SampledRow) -> Tensor:
    assert measured.values_M is not None  # the loop measures them where there is a critic
    return measured.values_M


def _share(clipped_M: Tensor, measured: SampledRow) -> Tensor:
    """The share of clipped tokens in each answer, summed over answers."""
    return segment_mean(clipped_M.double(), measured.answer_M, len(measured.rewards_N)).sum()
