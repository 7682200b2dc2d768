"""Loss terms of an update: policy and value losses, KL estimators and importance weights.

KL estimators. With d_t = log pi(a_t) - log pi_ref(a_t) on tokens sampled from the policy: k1, k2 and k3 are
those of Schulman, "Approximating KL divergence" (2020); `abs` is NeMo-Aligner's `use_absolute_kl`. In the
reward the estimate is a constant and its value matters. In the loss its gradient matters; its expectation
over tokens sampled from the policy, with the preceding tokens fixed, is

    k1   grad d                    ->  0: noise without a pull towards the reference
    abs  sign(d) grad log pi       ->  grad of sum |pi - pi_ref|
    k2   d grad log pi             ->  grad KL(pi || pi_ref)
    k3   (1 - exp(-d)) grad log pi ->  grad KL(pi_ref || pi), equal to k2's to first order in d

None of them accounts for the effect of a token on later tokens; k1 in the reward does.

Source: Liu et al. (arXiv 2510.01555); "A Comedy of Estimators" (arXiv 2512.21852).

Shapes: N answers, M tokens of all answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from rlhf.core.errors import EngineError
from rlhf.core.records import Rollout
from rlhf.kernels.tensors import segment_mean, segment_sum, to_device

Reduction = Literal["sequence_sum", "sequence_mean", "token_mean"]
Estimator = Literal["k1", "abs", "k2", "k3"]
KLReduction = Literal["sum", "mean"]
Level = Literal["token", "sequence"]

_REDUCE = {"sequence_sum": segment_sum, "sequence_mean": segment_mean, "token_mean": segment_sum}
"""Reduces the tokens of an answer; `token_mean` differs from `sequence_sum` in its denominator."""


def reinforce(
    logps_M: Tensor,
    answer_M: Tensor,
    advantages_N: Tensor,
    reduction: Reduction,
    denominator: float,
    weights_M: Tensor | None = None,
) -> Tensor:
    """The REINFORCE loss.

        sequence_sum   L = - sum_n A_n sum_t w_nt log pi(a_nt) / answers
        sequence_mean  L = - sum_n A_n mean_t w_nt log pi(a_nt) / answers
        token_mean     L = - sum_n A_n sum_t w_nt log pi(a_nt) / tokens

    `sequence_sum` is the policy gradient, `token_mean` the same on a scale that does not grow with length;
    `sequence_mean` weights the tokens of short answers more. On fresh samples the gradient of `sequence_sum`
    equals that of TRL's RLOO, whose ratio is then 1.

    Args:
        logps_M: log-probabilities with gradient.
        advantages_N: constants.
        denominator: answers or, for `token_mean`, tokens of the whole update over all ranks, so that
            micro-batches and ranks add up to one mean.
        weights_M: importance weights; constants.

    Source: NeMo-Aligner's `megatron_gpt_reinforce_actor.py` (sequence_mean, since its micro-batches hold one
    answer); arXiv 2402.14740 (sequence_sum).
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
    """PPO's clipped loss with one ratio per answer, as in TRL's RLOO: (loss, clipped_N).

        r_n = exp(sum_t log pi(a_nt) - log pi_old(a_nt))
        L = - sum_n w_n min(r_n A_n, clip(r_n, 1 - low, 1 + high) A_n) / denominator

    On the first pass over fresh answers r = 1 and the gradient is REINFORCE's. `clipped_N` marks the answers
    whose gradient is zero because of the clip.

    Args:
        logps_M: log-probabilities with gradient.
        old_logps_M: log-probabilities of the policy that sampled; constants.
        advantages_N: constants.
        clip: (low, high), the ratio is clipped to 1 - low .. 1 + high. A higher upper bound lets rare tokens
            become likely ("clip-higher", DAPO, arXiv 2503.14476).
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
    """PPO's clipped loss with one ratio per token: (loss, clipped_M).

        r_t = exp(log pi(a_t) - log pi_old(a_t))
        L = - sum_n reduce_t w_t min(r_t A_t, clip(r_t, 1 - low, 1 + high) A_t) / denominator

    The reductions are those of `reinforce`. `clipped_M` marks the tokens whose gradient is zero because of
    the clip.

    Args:
        logps_M: log-probabilities with gradient.
        old_logps_M: log-probabilities of the policy that sampled; constants.
        advantages_M: constants.
        answers: N.
        clip: (low, high), the ratio is clipped to 1 - low .. 1 + high. A higher upper bound lets rare tokens
            become likely ("clip-higher", DAPO, arXiv 2503.14476).
        denominator: answers or, for `token_mean`, tokens of the whole update.
        weights_M: importance weights; constants.

    Source: Schulman et al. (arXiv 1707.06347), equation 7; NeMo-Aligner's `megatron_gpt_ppo_actor.py`
        (token_mean).
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
    """PPO's clipped value loss: (loss, clipped_M).

        v'_t = v_old + clip(v_t - v_old, -clip, clip)
        L = 1/2 sum_n reduce_t max((v_t - R_t)^2, (v'_t - R_t)^2) / denominator, over counted tokens

    A value that moved more than `clip` towards its return has no gradient, and `clipped_M` marks it; one that
    moved away from its return keeps its gradient.

    Args:
        values_M: with gradient.
        old_values_M: values when sampled; constants.
        returns_M: constants; ignored where not counted.
        counted_M: mask of the tokens that take part.
        answers: N.
        clip: None means no clipping.
        denominator: as for the policy loss.

    Source: NeMo-Aligner's `megatron_gpt_critic.py`, `loss_func`; TRL's former PPOTrainer.
    """
    old_M, returns_M = old_values_M.detach(), returns_M.detach().masked_fill(~counted_M, 0.0)
    error_M = (values_M - returns_M).square()
    clipped_M = torch.zeros_like(counted_M)
    if clip is not None:
        clipped_error_M = (old_M + (values_M - old_M).clamp(-clip, clip) - returns_M).square()
        clipped_M = (clipped_error_M > error_M).detach() & counted_M
        error_M = torch.max(error_M, clipped_error_M)
    error_M = error_M.masked_fill(~counted_M, 0.0)
    return _REDUCE[reduction](error_M, answer_M, answers).sum() / (2 * denominator), clipped_M


def kl_of_tokens(log_ratio_M: Tensor, estimator: Estimator) -> Tensor:
    """kl_M, per token: k1 = d, abs = |d|, k2 = d^2 / 2, k3 = exp(-d) - 1 + d.

    k1 is unbiased and may be negative; k3 is unbiased and non-negative; k2 and abs are biased and
    non-negative.
    """
    return {
        "k1": lambda: log_ratio_M,
        "abs": lambda: log_ratio_M.abs(),
        "k2": lambda: log_ratio_M.square() / 2,
        "k3": lambda: (-log_ratio_M).exp() - 1 + log_ratio_M,
    }[estimator]()


def kl_charges(
    log_ratio_M: Tensor, answer_M: Tensor, answers: int, estimator: Estimator, reduction: KLReduction
) -> Tensor:
    """Each token's share of its answer's KL: the token's KL, divided by the answer's length for the mean."""
    kl_M = kl_of_tokens(log_ratio_M, estimator)
    if reduction == "sum":
        return kl_M
    return kl_M / segment_sum(torch.ones_like(kl_M), answer_M, answers)[answer_M]


def kl_of_answers(
    log_ratio_M: Tensor, answer_M: Tensor, answers: int, estimator: Estimator, reduction: KLReduction
) -> Tensor:
    """kl_N, per answer: the sum over its tokens (TRL's RLOO, with k1) or their mean (NeMo-Aligner, with
    abs)."""
    reduce = {"sum": segment_sum, "mean": segment_mean}[reduction]
    return reduce(kl_of_tokens(log_ratio_M, estimator), answer_M, answers)


def kl_loss(
    logps_M: Tensor,
    reference_M: Tensor,
    answer_M: Tensor,
    counted_N: Tensor,
    estimator: Estimator,
    reduction: KLReduction,
    denominator: float,
) -> Tensor:
    """The KL term of the loss: sum over counted answers of kl_n / denominator.

    Args:
        logps_M: log-probabilities with gradient.
        reference_M: log-probabilities of the reference; constants.
        counted_N: mask of the answers that take part.
        denominator: counted answers of the whole update, over all ranks.
    """
    kl_N = kl_of_answers(logps_M - reference_M.detach(), answer_M, len(counted_N), estimator, reduction)
    return kl_N.masked_fill(~counted_N, 0.0).sum() / denominator


def trl_beta(
    coefficient: float, estimator: Estimator, reduction: KLReduction, length: float, kl: float
) -> float:
    """The beta of TRL's RLOO penalty (beta x sum of k1) that has the same expected value.

        beta = coefficient [/ length for a mean] [x 2 / sqrt(pi kl) for abs]

    k1 and k3 have the same mean; k2 too for small kl. For abs, d is assumed normal with mean kl; E[exp(-d)] =
    1 then implies the variance 2 kl, E|d| is about sqrt(4 kl / pi), and the factor is E|d| / E[d].

    Args:
        length: of the answer, in tokens.
        kl: per token, in nats.
    """
    per_token = coefficient / length if reduction == "mean" else coefficient
    return per_token * (2 / math.sqrt(math.pi * kl)) if estimator == "abs" else per_token


def importance_weights(
    logps_M: Tensor, engine_M: Tensor, answer_M: Tensor, answers: int, level: Level, cap: float
) -> Tensor:
    """Truncated importance weights of the trainer's policy over the engine's, at most `cap`.

        token     w_t = min(exp(log pi(a_t) - log mu(a_t)), cap)
        sequence  w_t = min(exp(sum over the answer's tokens of log pi - log mu), cap), for each of its tokens

    pi is the trainer's policy, mu the engine's. The weights are constants without gradient. `token` has low
    variance and ignores that the preceding tokens came from mu; `sequence` is exact up to the cap, with a
    variance that grows with length.

    Source: Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training" (2025), TIS,
    per token; TRL's GRPOTrainer, `vllm_importance_sampling_mode` token_truncate and sequence_truncate.
    """
    difference_M = logps_M.detach() - engine_M
    if level == "sequence":
        difference_M = segment_sum(difference_M, answer_M, answers)[answer_M]
    return difference_M.exp().clamp(max=cap)


def engine_logps(rollouts: Sequence[Rollout], like: Tensor) -> Tensor | None:
    """engine_M: the engine's log-probabilities with dtype and device of `like`; None for an engine that
    reports none.

    Raises:
        EngineError: the engine reported log-probabilities for some of the tokens only.
    """
    logprobs = [logprob for rollout in rollouts for logprob in rollout.logprobs]
    if not logprobs:
        return None
    if any(len(rollout.logprobs) != len(rollout.completion_ids) for rollout in rollouts):
        raise EngineError(
            f"The engine returned {len(logprobs)} log-probabilities for {like.numel()} tokens.",
            allowed="one log-probability for each token, or none at all",
        )
    return to_device(torch.tensor(logprobs, dtype=like.dtype), like.device)
