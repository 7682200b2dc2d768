"""The policy's objectives. Shapes: M tokens of all answers, N answers."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rlhf.kernels.tensors import segment_mean, segment_sum

Reduction = Literal["sequence_sum", "sequence_mean", "token_mean"]

_REDUCE = {"sequence_sum": segment_sum, "sequence_mean": segment_mean, "token_mean": segment_sum}
"""Tokens of an answer to one number; `token_mean` differs from `sequence_sum` by its denominator."""


def reinforce(
    logps_M: Tensor,
    answer_M: Tensor,
    advantages_N: Tensor,
    reduction: Reduction,
    denominator: float,
    weights_M: Tensor | None = None,
) -> Tensor:
    """REINFORCE: raise the log-probability of answers better than their siblings.

        sequence_sum   L = - sum_n A_n sum_t w_nt log pi(a_nt) / answers
        sequence_mean  L = - sum_n A_n mean_t w_nt log pi(a_nt) / answers
        token_mean     L = - sum_n A_n sum_t w_nt log pi(a_nt) / tokens

    `sequence_sum` is the policy gradient, and `token_mean` the same on a scale that does not grow with length;
    `sequence_mean` gives a token of a short answer more weight than one of a long answer. At the first update on fresh samples
    the gradient of `sequence_sum` is that of TRL's RLOO (its ratio is 1).

    Args:
        logps_M: log-probabilities with gradient.
        advantages_N: constants.
        denominator: answers or, for `token_mean`, tokens of the whole update, so that rows and processes add up to one mean.
        weights_M: importance weights; constants.

    Source: NeMo-Aligner's `megatron_gpt_reinforce_actor.py` (sequence_mean, since its micro-batches hold one answer);
    arXiv 2402.14740 (sequence_sum).
    """
    weighted_M = logps_M if weights_M is None else weights_M.detach() * logps_M
    logp_N = _REDUCE[reduction](weighted_M, answer_M, len(advantages_N))
    return -(advantages_N.detach() * logp_N).sum() / denominator


def clipped_sequence_ratio(
    logps_M: Tensor,
    old_logps_M: Tensor,
    answer_M: Tensor,
    advantages_N: Tensor,
    clip: tuple[float, float],
    denominator: float,
    weights_N: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """PPO's clipped objective with one ratio an answer, as TRL's RLOO has it: (loss, clipped_N).

        r_n = exp(sum_t log pi(a_nt) - log pi_old(a_nt))
        L = - sum_n w_n min(r_n A_n, clip(r_n, 1 - low, 1 + high) A_n) / denominator

    On the first pass over fresh answers r = 1: the value is the mean advantage, the gradient REINFORCE's. `clipped_N` tells
    the answers whose gradient the clip takes away.

    Args:
        logps_M: log-probabilities with gradient.
        old_logps_M: of the policy that sampled; constants.
        advantages_N: constants.
        clip: (low, high), how far the ratio may go below and above 1. A higher upper bound leaves rare tokens more room
            to become likely ("clip-higher", DAPO, arXiv 2503.14476).
        denominator: answers in the whole update.
        weights_N: importance weights; constants.

    Source: Schulman et al. (arXiv 1707.06347), equation 7; TRL's rloo_trainer.py, `_compute_loss`.
    """
    low, high = clip
    advantages_N = advantages_N.detach()
    log_ratio_N = segment_sum(logps_M - old_logps_M.detach(), answer_M, len(advantages_N))
    ratio_N = log_ratio_N.exp()
    objective_N = torch.min(ratio_N * advantages_N, ratio_N.clamp(1 - low, 1 + high) * advantages_N)
    if weights_N is not None:
        objective_N = objective_N * weights_N.detach()
    too_low_N = (ratio_N < 1 - low) & (advantages_N < 0)
    too_high_N = (ratio_N > 1 + high) & (advantages_N > 0)
    return -objective_N.sum() / denominator, (too_low_N | too_high_N).detach()


def clipped_token_ratio(
    logps_M: Tensor,
    old_logps_M: Tensor,
    answer_M: Tensor,
    advantages_M: Tensor,
    answers: int,
    reduction: Reduction,
    clip: tuple[float, float],
    denominator: float,
    weights_M: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """PPO's clipped objective with one ratio a token: (loss, clipped_M).

        r_t = exp(log pi(a_t) - log pi_old(a_t))
        L = - sum_n reduce_t w_t min(r_t A_t, clip(r_t, 1 - low, 1 + high) A_t) / denominator

    The reductions are those of `reinforce`. `clipped_M` tells the tokens whose gradient the clip takes away.

    Args:
        logps_M: log-probabilities with gradient.
        old_logps_M: of the policy that sampled; constants.
        advantages_M: constants.
        answers: N.
        clip: (low, high), how far the ratio may go below and above 1. A higher upper bound leaves rare tokens more room
            to become likely ("clip-higher", DAPO, arXiv 2503.14476).
        denominator: answers or, for `token_mean`, tokens of the whole update.
        weights_M: importance weights; constants.

    Source: Schulman et al. (arXiv 1707.06347), equation 7; NeMo-Aligner's `megatron_gpt_ppo_actor.py` (token_mean).
    """
    low, high = clip
    advantages_M = advantages_M.detach()
    ratio_M = (logps_M - old_logps_M.detach()).exp()
    objective_M = torch.min(ratio_M * advantages_M, ratio_M.clamp(1 - low, 1 + high) * advantages_M)
    if weights_M is not None:
        objective_M = objective_M * weights_M.detach()
    too_low_M = (ratio_M < 1 - low) & (advantages_M < 0)
    too_high_M = (ratio_M > 1 + high) & (advantages_M > 0)
    loss = -_REDUCE[reduction](objective_M, answer_M, answers).sum() / denominator
    return loss, (too_low_M | too_high_M).detach()


def clipped_value_loss(
    values_M: Tensor,
    old_values_M: Tensor,
    returns_M: Tensor,
    counted_M: Tensor,
    answer_M: Tensor,
    answers: int,
    reduction: Reduction,
    clip: float | None,
    denominator: float,
) -> tuple[Tensor, Tensor]:
    """PPO's loss of the critic: (loss, clipped_M).

        v'_t = v_old + clip(v_t - v_old, -clip, clip)
        L = 1/2 sum_n reduce_t max((v_t - R_t)^2, (v'_t - R_t)^2) / denominator, over tokens that count

    The larger of the two: a value that came nearer to its return by more than `clip` has no gradient to come nearer still,
    and `clipped_M` tells where; one that went away from it is drawn back however far it is.

    Args:
        values_M: with gradient.
        old_values_M: when sampled; constants.
        returns_M: constants; anything where a token does not count.
        answers: N.
        clip: None leaves the values free.
        denominator: as of the policy's loss.

    Source: NeMo-Aligner's `megatron_gpt_critic.py`, `loss_func`; TRL's former PPOTrainer.
    """
    old_M, returns_M = old_values_M.detach(), returns_M.detach().masked_fill(~counted_M, 0.0)
    error_M = (values_M - returns_M).square()
    clipped_M = torch.zeros_like(counted_M)
    if clip is not None:
        held_M = (old_M + (values_M - old_M).clamp(-clip, clip) - returns_M).square()
        clipped_M = (held_M > error_M).detach() & counted_M
        error_M = torch.max(error_M, held_M)
    error_M = error_M.masked_fill(~counted_M, 0.0)
    return _REDUCE[reduction](error_M, answer_M, answers).sum() / (2 * denominator), clipped_M
