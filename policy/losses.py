"""The policy's objective. Shapes: M tokens of all answers, N answers."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from rlhf.core.tensors import segment_mean, segment_sum

Reduction = Literal["sequence_sum", "token_mean"]


def reinforce(
    logps_M: Tensor, answer_M: Tensor, advantages_N: Tensor, reduction: Reduction, denominator: float
) -> Tensor:
    """REINFORCE: raise the log-probability of answers better than their siblings.

        sequence_sum  L = - sum_n A_n sum_t log pi(a_nt) / denominator
        token_mean    L = - sum_n A_n mean_t log pi(a_nt) / denominator

    At the first update on fresh samples the gradient of `sequence_sum` is that of TRL's RLOO (its ratio is 1).

    Args:
        logps_M: log-probabilities with gradient.
        advantages_N: constants.
        denominator: answers in the whole update, so that rows and processes add up to one mean.

    Source: NeMo-Aligner's `megatron_gpt_reinforce_actor.py` (token_mean); arXiv 2402.14740 (sequence_sum).
    """
    reduce = {"sequence_sum": segment_sum, "token_mean": segment_mean}[reduction]
    logp_N = reduce(logps_M, answer_M, len(advantages_N))
    return -(advantages_N.detach() * logp_N).sum() / denominator
