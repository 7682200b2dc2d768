"""The distance between policy and reference, by any of its names.

With d_t = log pi(a_t) - log pi_ref(a_t) on tokens sampled from the policy, each estimator has its own mean and variance; k1, k2 and
k3 are Schulman's ("Approximating KL divergence", 2020), `abs` is NeMo-Aligner's `use_absolute_kl`.

Shapes: M tokens of all answers, N answers.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from rlhf.core.tensors import segment_mean, segment_sum

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


def kl_of_answers(
    log_ratio_M: Tensor, answer_M: Tensor, answers: int, estimator: Estimator, reduction: Reduction
) -> Tensor:
    """Per answer: the sum over its tokens (TRL's RLOO, with k1) or their mean (NeMo-Aligner, with abs)."""
    reduce = {"sum": segment_sum, "mean": segment_mean}[reduction]
    return reduce(kl_of_tokens(log_ratio_M, estimator), answer_M, answers)
