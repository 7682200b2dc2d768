"""The loss terms of a reward model: local sums divided by a denominator of the whole update.

Shapes: N responses, A attributes, B pairs. A loss returns its share of the update's loss: the denominators
count the whole update (every packed row, every process), so that shares add up to the same loss however the
update is cut.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

PreferenceLoss = Literal["regular", "margin", "scaled"]


def regression(scores_NA: Tensor, ratings_NA: Tensor, present_NA: Tensor, denominator: float) -> Tensor:
    """Masked mean squared error on the attributes that were rated.

        L = sum over present (n, a) of (score_na - rating_na)^2 / denominator

    Args:
        scores_NA: predictions.
        ratings_NA: targets on the scale 0 to 4; anything where not present.
        present_NA: which targets exist.
        denominator: ratings present in the whole update.

    Source: SteerLM regression, NeMo-Aligner's `megatron_gpt_regression_reward_model.py` (there per
        micro-batch).
    """
    _same_shape(scores_NA, ratings_NA, present_NA)
    error_NA = (scores_NA - ratings_NA.masked_fill(~present_NA, 0.0)).masked_fill(~present_NA, 0.0)
    return error_NA.square().sum() / max(denominator, 1.0)


def bradley_terry(
    chosen_B: Tensor, rejected_B: Tensor, strength_B: Tensor, kind: PreferenceLoss, denominator: float
) -> Tensor:
    """Bradley-Terry on rewards, with the preference strength m in {1, 2, 3} used in one of three ways.

        regular  L = -log sigmoid(r_chosen - r_rejected)
        margin   L = -log sigmoid(r_chosen - r_rejected - m)
        scaled   L = -m log sigmoid(r_chosen - r_rejected)

    summed over pairs and divided by `denominator`, the pairs of the whole update (scaled, too, is a plain
    mean over pairs: it is not divided by the sum of m).

    Source: arXiv 2410.01257, section 3; margin as in Llama 2 (arXiv 2307.09288, equation 2).
    """
    _same_shape(chosen_B, rejected_B, strength_B)
    margin_B = chosen_B - rejected_B
    loss_B = {
        "regular": lambda: -F.logsigmoid(margin_B),
        "margin": lambda: -F.logsigmoid(margin_B - strength_B),
        "scaled": lambda: -strength_B * F.logsigmoid(margin_B),
    }[kind]()
    return loss_B.sum() / max(denominator, 1.0)


def centering(chosen_B: Tensor, rejected_B: Tensor, denominator: float) -> Tensor:
    """Pulls the rewards of a pair towards a mean of zero, which Bradley-Terry leaves open.

        L = sum over pairs of (r_chosen + r_rejected)^2 / denominator

    Source: "Helping or Herding?" (arXiv 2312.09244); the form is that of TRL's `center_rewards_coefficient`.
    """
    _same_shape(chosen_B, rejected_B)
    return (chosen_B + rejected_B).square().sum() / max(denominator, 1.0)


def fulfilment(scores_N: Tensor, fulfilled_N: Tensor, denominator: float) -> Tensor:
    """Binary cross-entropy of s = logit(Yes) - logit(No) against whether a principle is fulfilled.

        L = -sum over n of [y_n log sigmoid(s_n) + (1 - y_n) log sigmoid(-s_n)] / denominator

    sigmoid(s) is the probability of Yes among Yes and No.

    Args:
        fulfilled_N: 1 or 0.
        denominator: judgements in the whole update.

    Source: the data and the score of arXiv 2509.21319.
    """
    _same_shape(scores_N, fulfilled_N)
    loss = F.binary_cross_entropy_with_logits(scores_N.float(), fulfilled_N.float(), reduction="sum")
    return loss / max(denominator, 1.0)


def _same_shape(*tensors: Tensor) -> None:
    """Refuse to broadcast: a [B] against a [B, 1] would silently become all pairs."""
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) != 1:
        raise ValueError(f"shapes must be equal, got {[tuple(tensor.shape) for tensor in tensors]}")
