"""The losses of direct preference optimisation, as Bradley-Terry losses on implicit rewards.

The policy that maximises E[r] - beta KL(pi || pi_ref) is pi(y|x) = pi_ref(y|x) exp(r(x, y) / beta) / Z(x).
Solved for the reward,

    r(x, y) = beta log (pi(y|x) / pi_ref(y|x)) + beta log Z(x)

In the difference of two answers to one prompt Z(x) cancels. A loss on differences of rewards is therefore a
loss on the policy: Bradley-Terry gives DPO, and its margin and scaled forms the paper's two variants. With
D = log-ratio of the chosen answer - log-ratio of the rejected one, and m the preference strength:

    regular  L = -log sigmoid(beta D)
    margin   L = -log sigmoid(beta D - m)
    scaled   L = -m log sigmoid(beta D)

Source: Rafailov et al. (2023), arXiv 2305.18290, equations 4 to 7; margin and scaled as the reward losses of
arXiv 2410.01257, section 3.

Shapes: B pairs, N = 2B answers, chosen and rejected in turn, M tokens of all answers.
"""

from __future__ import annotations

from torch import Tensor

from reward.losses import PreferenceLoss, bradley_terry
from rlhf.kernels.tensors import segment_sum


def implicit_rewards(
    logps_M: Tensor, reference_M: Tensor, answer_M: Tensor, answers: int, beta: float
) -> Tensor:
    """rewards_N = beta sum_t (log pi(a_t) - log pi_ref(a_t)), summed over the tokens of each answer.

    Args:
        logps_M: log-probabilities of the policy, with gradient.
        reference_M: of the reference; constants.
        answer_M: the answer of each token.
        answers: N.
    """
    return beta * segment_sum(logps_M - reference_M.detach(), answer_M, answers)


def dpo(rewards_N: Tensor, strength_B: Tensor, kind: PreferenceLoss, denominator: float) -> Tensor:
    """The DPO loss of pairs: sum over pairs / denominator.

    Args:
        rewards_N: implicit rewards, chosen and rejected in turn.
        strength_B: the preference strength m.
        denominator: pairs of the whole update.
    """
    chosen_B, rejected_B = rewards_N.reshape(-1, 2).unbind(1)
    return bradley_terry(chosen_B, rejected_B, strength_B, kind, denominator)
