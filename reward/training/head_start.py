"""Initial weights of the head: a ridge regression of the targets on the hidden states of the frozen base.

A head of zeros has to learn the average rating first, with gradients that clipping cuts to nothing; and the
adapter meanwhile follows a head that points nowhere. Fitting the head before the adapter moves ("linear
probing, then fine-tuning", arXiv 2202.10054) costs one forward pass over a few items.

Shapes: N responses, D hidden units, K equations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from reward.training.batches import Item, RewardBatch, batches
from rlhf.distributed.sharding import compute_device
from rlhf.kernels.packing_check import one_per_row
from rlhf.models.forwards import last_states
from rlhf.models.loading import PeftModel, autocast
from rlhf.models.roles import role
from rlhf.runs.gpu_memory import phase

PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Candidates in units of the features' mean squared norm: small ones suit clean ratings, large ones noise."""


def ridge(features_KD: Tensor, targets_K: Tensor) -> Tensor:
    """Ridge regression, with the penalty of the smallest leave-one-out error.

        w_D = argmin sum_k (x_k . w - y_k)^2 + lambda |w|^2

    In the dual form, w = X' (G + lambda I)^-1 y with the Gram matrix G = X X' = Q diag(g) Q': a K x K
    problem, where D may be 8,192. With H = Q diag(g / (g + lambda)) Q' the error of equation k, left out, is
    (y - H y)_k / (1 - H_kk).
    """
    X_KD, y_K = features_KD.double(), targets_K.double()
    gram_KK = X_KD @ X_KD.T
    scale = float(gram_KK.diagonal().mean())
    g_K, Q_KK = torch.linalg.eigh(gram_KK)
    rotated_K = Q_KK.T @ y_K

    def left_out(penalty: float) -> float:
        shrink_K = g_K / (g_K + penalty)
        residual_K = y_K - Q_KK @ (shrink_K * rotated_K)
        leverage_K = (Q_KK.square() * shrink_K).sum(dim=1)
        return float((residual_K / (1 - leverage_K)).square().mean())

    penalty = min((candidate * scale for candidate in PENALTIES), key=left_out)
    weights_D: Tensor = X_KD.T @ (Q_KK @ (rotated_K / (g_K + penalty)))
    return weights_D.float()


@torch.no_grad()
@phase("head start")
def fit_head(
    model: PeftModel,
    head: torch.nn.Linear,
    items: Sequence[Item],
    *,
    budget: int,
    pad_id: int,
    done: Callable[[int], None],
) -> None:
    """Set each row of the head by the ratings of its attribute; the reward's also by the pairs' strengths.

    An attribute that none of the items rates keeps a row of zeros. `done` receives the
    number of items read so far.
    """
    equations: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in range(head.weight.shape[0])]
    read = 0
    alone = one_per_row(model.get_base_model())
    for batch in batches(items, budget, pad_id=pad_id, one_per_row=alone):
        packed = batch.packed.to(compute_device(model))
        with autocast(model.get_base_model()), role(model, None):
            hidden_ND = last_states(model, packed)
        _collect(batch, hidden_ND.float().cpu(), equations)
        read += len(packed.trees)
        done(read)
    for row, (features, targets) in enumerate(equations):
        if features:
            head.weight[row] = ridge(torch.cat(features), torch.cat(targets)).to(head.weight)


def _collect(
    batch: RewardBatch, hidden_ND: Tensor, equations: list[tuple[list[Tensor], list[Tensor]]]
) -> None:
    for attribute, (features, targets) in enumerate(equations):
        rated_N = batch.present_NA[:, attribute]
        features.append(hidden_ND[rated_N])
        targets.append(batch.ratings_NA[rated_N, attribute])
    # A pair says what the difference of two rewards should be.
    features, targets = equations[0]
    features.append(hidden_ND[batch.chosen_B] - hidden_ND[batch.rejected_B])
    targets.append(batch.strength_B)
