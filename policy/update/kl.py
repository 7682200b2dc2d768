"""The distance between policy and reference, by any of its names.

With d_t = log pi(a_t) - log pi_ref(a_t) on tokens sampled from the policy, each estimator has its own mean and variance; k1, k2 and
k3 are Schulman's ("Approximating KL divergence", 2020), `abs` is NeMo-Aligner's `use_absolute_kl`.

In the reward an estimate is a constant, and what counts is its value. In the loss it is differentiated, and what counts is its
gradient, which is another matter. In expectation over tokens drawn from the policy, with the tokens before them held fixed:

    k1   grad d                   ->  0: noise, and no pull towards the reference at all
    abs  sign(d) grad log pi      ->  grad of sum |pi - pi_ref|
    k2   d grad log pi            ->  grad KL(pi || pi_ref): the one that does what its name says
    k3   (1 - exp(-d)) grad log pi ->  grad KL(pi_ref || pi): the other direction, equal to k2's to first order in d

Source: Liu et al. (arXiv 2510.01555); "A Comedy of Estimators" (arXiv 2512.21852). None of them charges a token for where it leads
later tokens; in the reward, where an answer is judged as a whole, k1 does.

Shapes: M tokens of all answers, N answers.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from rlhf.kernels.tensors import segment_mean, segment_sum

Estimator = Literal["k1", "abs", "k2", "k3"]
Reduction = Literal["sum", "mean"]


def kl_of_tokens(log_ratio_M: Tensor, estimator: Estimator) -> Tensor:
    """Per token: k1 = d, abs = |d|, k2 = d^2 / 2, k3 = exp(-d) - 1 + d.

    k1 is unbiased and may be negative; k3 is unbiased and never negative; k2 and abs are biased, and never negative.
    """
    return {
        "k1": lambda: log_ratio_M,
        "abs": lambda: log_ratio_M.abs(),
        "k2": lambda: log_ratio_M.square() / 2,
        "k3": lambda: (-log_ratio_M).exp() - 1 + log_ratio_M,
    }[estimator]()


def kl_charges(
    log_ratio_M: Tensor, answer_M: Tensor, answers: int, estimator: Estimator, reduction: Reduction
) -> Tensor:
    """Each token's share of what its answer is charged: its KL or, for the mean, that divided by the answer's tokens."""
    kl_M = kl_of_tokens(log_ratio_M, estimator)
    if reduction == "sum":
        return kl_M
    return kl_M / segment_sum(torch.ones_like(kl_M), answer_M, answers)[answer_M]


def kl_of_answers(
    log_ratio_M: Tensor, answer_M: Tensor, answers: int, estimator: Estimator, reduction: Reduction
) -> Tensor:
    """Per answer: the sum over its tokens (TRL's RLOO, with k1) or their mean (NeMo-Aligner, with abs)."""
    reduce = {"sum": segment_sum, "mean": segment_mean}[reduction]
    return reduce(kl_of_tokens(log_ratio_M, estimator), answer_M, answers)


def kl_loss(
    logps_M: Tensor,
    reference_M: Tensor,
    answer_M: Tensor,
    counted_N: Tensor,
    estimator: Estimator,
    reduction: Reduction,
    denominator: float,
) -> Tensor:
    """The KL as a term of the loss: sum over the answers that count of their KL / denominator, with gradient to `logps_M`.

    Args:
        logps_M: of the policy as it is now, with gradient.
        counted_N: which answers count.
        denominator: answers that count in the whole update, so that rows and processes add up to one mean.
    """
    kl_N = kl_of_answers(logps_M - reference_M.detach(), answer_M, len(counted_N), estimator, reduction)
    return kl_N.masked_fill(~counted_N, 0.0).sum() / denominator


def trl_beta(
    coefficient: float, estimator: Estimator, reduction: Reduction, length: float, kl: float
) -> float:
    """The coefficient of TRL's RLOO penalty, beta x the sum of k1, that costs an answer as much.

        beta = coefficient [/ length for a mean] [x 2 / sqrt(pi kl) for abs]

    k1 and k3 have one mean, k2 the same for small kl. For abs, d is taken as normal with the mean kl that E[exp(-d)] = 1 then
    gives to a variance of 2 kl: E|d| is about sqrt(4 kl / pi), so the factor is E|d| / E[d].

    Args:
        length: of the answer in tokens.
        kl: of a token, in nats.
    """
    per_token = coefficient / length if reduction == "mean" else coefficient
    return per_token * (2 / math.sqrt(math.pi * kl)) if estimator == "abs" else per_token
