"""Segment sums and means over answers of unequal length.

Shapes: M tokens of all answers of a batch, concatenated; N answers; `answer_M` is the index of a token's
answer.
"""

from __future__ import annotations

from torch import Tensor


def segment_sum(values_M: Tensor, answer_M: Tensor, answers: int) -> Tensor:
    """sum_N[n] = sum of values over the tokens of answer n; 0 for an answer without tokens."""
    if values_M.shape != answer_M.shape:
        raise ValueError(f"shapes must be equal, got {tuple(values_M.shape)} and {tuple(answer_M.shape)}")
    return values_M.new_zeros(answers).index_add(0, answer_M, values_M)


def segment_mean(values_M: Tensor, answer_M: Tensor, answers: int) -> Tensor:
    """mean_N[n] = mean of values over the tokens of answer n; 0 for an answer without tokens."""
    counts_N = segment_sum(values_M.new_ones(values_M.shape), answer_M, answers)
    return segment_sum(values_M, answer_M, answers) / counts_N.clamp(min=1)
