"""From rewards to what each answer, or each token, is worth.

Shapes: N answers, P prompts, G answers to each; M tokens of all answers, one answer after another; K anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Unfinished = Literal["drop", "keep", "penalty"]


def by_unfinished_rule(
    rewards_N: Tensor, finished_N: Tensor, rule: Unfinished, unfinished_reward: float | None
) -> tuple[Tensor, Tensor]:
    """(rewards_N, counted_N): `drop` counts finished answers only, `keep` all as they are, `penalty` gives cut ones a reward."""
    if rule == "drop":
        return rewards_N, finished_N
    if rule == "penalty":
        rewards_N = torch.where(finished_N, rewards_N, float(unfinished_reward or 0.0))
    return rewards_N, torch.ones_like(finished_N)


def leave_one_out(rewards_PG: Tensor, counted_PG: Tensor) -> Tensor:
    """REINFORCE's leave-one-out advantage: an answer's reward minus the mean of its siblings'.

        A_pi = R_pi - sum over counted j != i of R_pj / (counted_p - 1)

    Answers that do not count (unfinished ones, where the rule drops them) take no part in a baseline and have
    advantage 0, and so has an answer without counted siblings.

    Args:
        rewards_PG: penalised rewards; anything, even NaN, where not counted.
        counted_PG: which answers count.

    Source: Ahmadian et al. (arXiv 2402.14740), equation 7; over finished answers as NeMo-Aligner's `reinforce.py` does.
    """
    _check_shapes(rewards_PG, counted_PG)
    counted_rewards_PG = rewards_PG.masked_fill(~counted_PG, 0.0)
    siblings_PG = counted_PG.sum(dim=1, keepdim=True) - counted_PG.long()
    baseline_PG = (counted_rewards_PG.sum(dim=1, keepdim=True) - counted_rewards_PG) / siblings_PG.clamp(
        min=1
    )
    worth = counted_PG & (siblings_PG > 0)
    return (counted_rewards_PG - baseline_PG).masked_fill(~worth, 0.0)


def aligner_advantage(rewards_PG: Tensor, finished_PG: Tensor) -> Tensor:
    """NeMo-Aligner's advantage to the letter, its slip for unfinished answers included.

        A_pi = R_pi - sum over finished j != i of R_pj / (finished_p - 1)    where finished_p > 1, else 0

    The divisor is meant for an answer that is finished itself: for one that is not, all finished_p siblings are summed and
    divided by one less.

    Source: NeMo-Aligner, nemo_aligner/utils/ppo_utils.py, `calculate_rloo_baseline`.
    """
    _check_shapes(rewards_PG, finished_PG)
    finished_rewards_PG = rewards_PG.masked_fill(~finished_PG, 0.0)
    finished_P1 = finished_PG.sum(dim=1, keepdim=True)
    others_PG = finished_rewards_PG.sum(dim=1, keepdim=True) - finished_rewards_PG
    baseline_PG = others_PG / (finished_P1 - 1).clamp(min=1)
    return torch.where(finished_P1 > 1, rewards_PG - baseline_PG, torch.zeros_like(rewards_PG))


def token_rewards(rewards_N: Tensor, penalty_M: Tensor, answer_M: Tensor) -> Tensor:
    """rewards_M: every token pays its penalty, and the last one of an answer brings the answer's reward.

        r_t = -penalty_t + [t is the answer's last token] R

    Source: NeMo-Aligner, nemo_aligner/utils/ppo_utils.py, `calculate_ppo_rewards`.
    """
    last_M = torch.ones_like(answer_M, dtype=torch.bool)
    last_M[:-1] = answer_M[1:] != answer_M[:-1]
    return rewards_N[answer_M] * last_M - penalty_M


def generalised_advantages(
    rewards_M: Tensor, values_M: Tensor, answer_M: Tensor, discount: float, gae_lambda: float
) -> Tensor:
    """GAE: what came beyond what was expected, now and, ever less, later in the answer.

        delta_t = r_t + discount V_{t+1} - V_t,  A_t = sum over l >= 0 of (discount lambda)^l delta_{t+l}

    V_t is what was expected before token t; after an answer's last token it is 0.

    Source: Schulman et al. (arXiv 1506.02438), equation 16; NeMo-Aligner, `calculate_advantages_and_returns`.
    """
    if not rewards_M.shape == values_M.shape == answer_M.shape:
        shapes = [tuple(one.shape) for one in (rewards_M, values_M, answer_M)]
        raise ValueError(f"shapes must be equal, got {shapes}")
    advantages: list[float] = []
    answer, next_value, later = -1, 0.0, 0.0
    # From the last token to the first, in Python's own numbers: tokens are many, and the work on each is little.
    for reward, value, place in zip(
        *(one.flip(0).tolist() for one in (rewards_M, values_M, answer_M)), strict=True
    ):
        if place != answer:
            answer, next_value, later = place, 0.0, 0.0
        later = reward + discount * next_value - value + discount * gae_lambda * later
        next_value = value
        advantages.append(later)
    return torch.tensor(advantages[::-1], dtype=values_M.dtype, device=values_M.device)


def mean_and_variance(values_K: Tensor, total: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """Over all processes, the variance without Bessel's correction; (0, 0) of nothing.

    Args:
        total: sums a tensor over all processes.
    """
    values_K = values_K.double()
    count, added = total(torch.stack([torch.ones_like(values_K).sum(), values_K.sum()])).tolist()
    mean = added / max(count, 1.0)
    # In a second step: as a difference of two large sums the variance would be lost.
    return mean, float(total((values_K - mean).square().sum())) / max(count, 1.0)


def _check_shapes(rewards_PG: Tensor, counted_PG: Tensor) -> None:
    if rewards_PG.shape != counted_PG.shape:
        raise ValueError(f"shapes must be equal, got {tuple(rewards_PG.shape)} and {tuple(counted_PG.shape)}")
