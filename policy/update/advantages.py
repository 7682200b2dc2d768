"""From rewards to the advantage of each answer or token.

Shapes: P prompts with G answers each, N = P x G answers, M tokens of all answers in order, K any number of
values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Unfinished = Literal["drop", "keep", "penalty"]


def apply_unfinished_rule(
    rewards_N: Tensor, finished_N: Tensor, rule: Unfinished, unfinished_reward: float | None
) -> tuple[Tensor, Tensor]:
    """(rewards_N, counted_N) under the rule for answers that were cut off at the maximal length.

    `drop` counts finished answers only, `keep` counts all, `penalty` counts all and replaces the reward of
    cut-off ones.
    """
    if rule == "drop":
        return rewards_N, finished_N
    if rule == "penalty":
        rewards_N = torch.where(finished_N, rewards_N, float(unfinished_reward or 0.0))
    return rewards_N, torch.ones_like(finished_N)


def flat_groups(
    rewards_N: Tensor,
    finished_N: Tensor,
    group_size: int,
    rule: Unfinished,
    unfinished_reward: float | None,
) -> Tensor:
    """flat_P: whether the counted rewards of a group are all equal, under the rule for unfinished answers.

    A group without counted answers is flat too. With a leave-one-out baseline and no KL penalty the
    advantages of a flat group are 0; with a penalty they are differences of KL alone.

    Args:
        rewards_N: after shaping, in whole groups; NaN where an answer has no reward.
    """
    compared_N, counted_N = apply_unfinished_rule(rewards_N, finished_N, rule, unfinished_reward)
    counted_PG = (counted_N & ~torch.isnan(rewards_N)).view(-1, group_size)
    compared_PG = compared_N.view(-1, group_size)
    highest_P = compared_PG.masked_fill(~counted_PG, -math.inf).amax(dim=1)
    lowest_P = compared_PG.masked_fill(~counted_PG, math.inf).amin(dim=1)
    return highest_P <= lowest_P


def skip_flat_groups(rewards_N: Tensor, flat_P: Tensor) -> Tensor:
    """Rewards with NaN in flat groups: such answers take part in no loss and no denominator.

    Source: the filter of DAPO's dynamic sampling (arXiv 2503.14476, section 3.2); nothing is sampled again.
    """
    masked_PG = rewards_N.view(len(flat_P), -1).masked_fill(flat_P[:, None], math.nan)
    return masked_PG.flatten()


def leave_one_out(rewards_PG: Tensor, counted_PG: Tensor) -> Tensor:
    """Leave-one-out advantages: an answer's reward minus the mean reward of the other answers to its prompt.

        A_pi = R_pi - sum over counted j != i of R_pj / (counted_p - 1)

    Answers that are not counted are in no baseline and have the advantage 0, as has an answer without counted
    siblings.

    Args:
        rewards_PG: rewards minus the KL penalty; ignored, even NaN, where not counted.
        counted_PG: mask of the answers that take part.

    Source: Ahmadian et al. (arXiv 2402.14740), equation 7; over finished answers as NeMo-Aligner's
        `reinforce.py` does.
    """
    _check_shapes(rewards_PG, counted_PG)
    counted_rewards_PG = rewards_PG.masked_fill(~counted_PG, 0.0)
    siblings_PG = counted_PG.sum(dim=1, keepdim=True) - counted_PG.long()
    sum_of_siblings_PG = counted_rewards_PG.sum(dim=1, keepdim=True) - counted_rewards_PG
    baseline_PG = sum_of_siblings_PG / siblings_PG.clamp(min=1)
    has_baseline_PG = counted_PG & (siblings_PG > 0)
    return (counted_rewards_PG - baseline_PG).masked_fill(~has_baseline_PG, 0.0)


def aligner_advantage(rewards_PG: Tensor, finished_PG: Tensor) -> Tensor:
    """NeMo-Aligner's leave-one-out advantage, its bug for unfinished answers included.

        A_pi = R_pi - sum over finished j != i of R_pj / (finished_p - 1)    where finished_p > 1, else 0

    For an unfinished answer the sum has finished_p terms and is still divided by finished_p - 1.

    Source: NeMo-Aligner, nemo_aligner/utils/ppo_utils.py, `calculate_rloo_baseline`.
    """
    _check_shapes(rewards_PG, finished_PG)
    finished_rewards_PG = rewards_PG.masked_fill(~finished_PG, 0.0)
    finished_P1 = finished_PG.sum(dim=1, keepdim=True)
    others_PG = finished_rewards_PG.sum(dim=1, keepdim=True) - finished_rewards_PG
    baseline_PG = others_PG / (finished_P1 - 1).clamp(min=1)
    return torch.where(finished_P1 > 1, rewards_PG - baseline_PG, torch.zeros_like(rewards_PG))


def token_rewards(rewards_N: Tensor, penalty_M: Tensor, answer_M: Tensor) -> Tensor:
    """rewards_M: minus the KL penalty at each token, plus the answer's reward at its last token.

        r_t = -penalty_t + [t is the answer's last token] R

    Source: NeMo-Aligner, nemo_aligner/utils/ppo_utils.py, `calculate_ppo_rewards`.
    """
    last_M = torch.ones_like(answer_M, dtype=torch.bool)
    last_M[:-1] = answer_M[1:] != answer_M[:-1]
    return rewards_N[answer_M] * last_M - penalty_M


def generalised_advantages(
    rewards_M: Tensor, values_M: Tensor, answer_M: Tensor, discount: float, gae_lambda: float
) -> Tensor:
    """Generalised advantage estimation (GAE), advantages_M.

        delta_t = r_t + discount V_{t+1} - V_t,  A_t = sum over l >= 0 of (discount lambda)^l delta_{t+l}

    V_t is the value before token t; after an answer's last token it is 0.

    Source: Schulman et al. (arXiv 1506.02438), equation 16; NeMo-Aligner, `calculate_advantages_and_returns`.
    """
    if not rewards_M.shape == values_M.shape == answer_M.shape:
        shapes = [tuple(tensor.shape) for tensor in (rewards_M, values_M, answer_M)]
        raise ValueError(f"shapes must be equal, got {shapes}")
    values_double_M = values_M.double()
    next_M = _following(values_double_M, answer_M, 1)
    sum_M = rewards_M.double() + discount * next_M - values_double_M
    decay, reach = discount * gae_lambda, 1
    # After k rounds sum_M[t] covers l < 2^k: log2(M) operations on whole tensors, no read of the device.
    while reach < len(answer_M):
        sum_M = sum_M + decay**reach * _following(sum_M, answer_M, reach)
        reach *= 2
    return sum_M.to(values_M.dtype)


def _following(values_M: Tensor, answer_M: Tensor, steps: int) -> Tensor:
    """The value `steps` tokens later in the same answer; 0 beyond its end."""
    later_M = torch.zeros_like(values_M)
    same_answer_M = answer_M[steps:] == answer_M[:-steps]
    later_M[: len(values_M) - steps] = values_M[steps:].masked_fill(~same_answer_M, 0.0)
    return later_M


def mean_and_variance(
    values_K: Tensor, counted_K: Tensor, all_reduce: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Mean and variance (without Bessel's correction) of the counted values over all ranks; (0, 0) of none.

    Args:
        counted_K: mask; values outside it are ignored, even NaN.
        all_reduce: sums a tensor over all ranks.
    """
    values_K = values_K.double().masked_fill(~counted_K, 0.0)
    count, sum_ = all_reduce(torch.stack([counted_K.double().sum(), values_K.sum()])).unbind()
    count = count.clamp(min=1.0)
    mean = sum_ / count
    # In a second reduction: the difference of two large sums would lose the variance to rounding.
    squares_K = (values_K - mean).square().masked_fill(~counted_K, 0.0)
    return mean, all_reduce(squares_K.sum()) / count


def _check_shapes(rewards_PG: Tensor, counted_PG: Tensor) -> None:
    if rewards_PG.shape != counted_PG.shape:
        raise ValueError(f"shapes must be equal, got {tuple(rewards_PG.shape)} and {tuple(counted_PG.shape)}")
