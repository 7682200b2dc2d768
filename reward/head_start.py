"""Where the head starts: the ridge regression of the targets on what the frozen base already knows.

A head of zeros has to learn the average rating first, with gradients that clipping cuts to nothing; and the adapter
meanwhile follows a head that points nowhere. Fitting the head before the adapter moves ("linear probing, then
fine-tuning", arXiv 2202.10054) costs one forward pass over a few items.

Shapes: N responses, D hidden units, K equations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reward.batches import Item, RewardBatch, batches
from rlhf.core.models import PeftModel, autocast, packed_inputs

RIDGE = 0.01
"""Penalty on the weights, in units of the features' mean squared norm."""


def ridge(features_KD: Tensor, targets_K: Tensor) -> Tensor:
    """w_D = argmin sum_k (x_k . w - y_k)^2 + lambda |w|^2, with lambda = RIDGE x mean_k |x_k|^2.

    Solved in its dual form, w = X' (X X' + lambda I)^-1 y: a K x K system, where D may be 8,192.
    """
    X, y = features_KD.double(), targets_K.double()
    gram_KK = X @ X.T
    penalty = RIDGE * gram_KK.diagonal().mean()
    weights_K = torch.linalg.solve(gram_KK + penalty * torch.eye(len(y), dtype=X.dtype), y)
    return (X.T @ weights_K).float()


@torch.no_grad()
def fit_head(model: PeftModel, head: torch.nn.Module, items: Sequence[Item], *, budget: int, pad_id: int) -> None:
    """Set each row of the head by the ratings of its attribute; the reward's also by the pairs' strengths.

    An attribute that none of the items rates keeps a row of zeros.
    """
    base = model.get_base_model()
    body = getattr(base, base.base_model_prefix)
    equations: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in range(head.weight.shape[0])]
    for batch in batches(items, budget, pad_id=pad_id):
        packed = batch.packed.to(model.device)
        with autocast(base), model.disable_adapter():
            hidden_RTD = body(**packed_inputs(packed), use_cache=False).last_hidden_state
        _collect(batch, hidden_RTD[packed.last_tokens_N()].float().cpu(), equations)
    for row, (features, targets) in enumerate(equations):
        if features:
            head.weight[row] = ridge(torch.cat(features), torch.cat(targets)).to(head.weight)


def _collect(batch: RewardBatch, hidden_ND: Tensor, equations: list[tuple[list[Tensor], list[Tensor]]]) -> None:
    for attribute, (features, targets) in enumerate(equations):
        rated_N = batch.present_NA[:, attribute]
        features.append(hidden_ND[rated_N])
        targets.append(batch.ratings_NA[rated_N, attribute])
    # A pair says what the difference of two rewards should be.
    features, targets = equations[0]
    features.append(hidden_ND[batch.chosen_B] - hidden_ND[batch.rejected_B])
    targets.append(batch.strength_B)
