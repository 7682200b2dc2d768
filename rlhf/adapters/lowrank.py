"""LoRA updates as pairs of factors: weighted sums and truncations of dW = B A that never form dW.

Shapes: R rank, I inputs and O outputs of a layer, K singular values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Factors(NamedTuple):
    """One layer's update dW_OI = B_OR A_RI; A includes the scale."""

    B_OR: Tensor
    A_RI: Tensor


Update = Mapping[str, Factors]
"""The update of an adapter by layer; other layers have none."""


def weighted_sum(parts: Sequence[tuple[float, Factors]]) -> Factors:
    """The factors of a weighted sum of updates, exactly; their ranks add up.

    dW = sum_i w_i B_i A_i = [B_1 … B_n] [w_1 A_1; …; w_n A_n]
    """
    return Factors(
        torch.cat([factors.B_OR for _, factors in parts], dim=1),
        torch.cat([weight * factors.A_RI for weight, factors in parts]),
    )


def combine(parts: Sequence[tuple[float, Update]]) -> dict[str, Factors]:
    """The weighted sum of adapters, layer by layer; an adapter without a layer adds nothing there.

    Updates with weight 0 are skipped, so that they do not increase the rank.
    """
    used = [(weight, update) for weight, update in parts if weight != 0]
    layers = dict.fromkeys(layer for _, update in used for layer in update)
    return {
        layer: weighted_sum([(weight, update[layer]) for weight, update in used if layer in update])
        for layer in layers
    }


def truncate(update: Update, rank: int) -> tuple[dict[str, Factors], float]:
    """The closest update of at most this rank in every layer, and the relative error of the truncation.

        B = Q_B R_B, A' = Q_A R_A, R_B R_A' = U S V': dW ~ (Q_B U_r sqrt(S_r)) (sqrt(S_r) V_r' Q_A')
        error = sqrt(sum of S_k^2 that are cut / sum of all S_k^2), over all layers

    By Eckart and Young it is the closest one in the Frobenius norm. dW is never formed.
    """
    kept: dict[str, Factors] = {}
    cut, total = 0.0, 0.0
    for layer, (B_OR, A_RI) in update.items():
        QB_OK, RB_KR = torch.linalg.qr(B_OR.double())
        QA_IK, RA_KR = torch.linalg.qr(A_RI.double().T)
        U_KK, S_K, V_KK = torch.linalg.svd(RB_KR @ RA_KR.T, full_matrices=False)
        root_K = S_K[:rank].sqrt()
        kept[layer] = Factors(
            (QB_OK @ (U_KK[:, :rank] * root_K)).to(B_OR.dtype),
            ((root_K[:, None] * V_KK[:rank]) @ QA_IK.T).to(A_RI.dtype),
        )
        cut += float(S_K[rank:].square().sum())
        total += float(S_K.square().sum())
    return kept, math.sqrt(cut / total) if total else 0.0


def rank_of(update: Update) -> int:
    """The largest rank of any layer."""
    return max((factors.A_RI.shape[0] for factors in update.values()), default=0)


def padded(factors: Factors, rank: int) -> Factors:
    """The same update with factors of exactly this rank, padded with zeros."""
    missing = rank - factors.A_RI.shape[0]
    pad = torch.nn.functional.pad
    return Factors(pad(factors.B_OR, (0, missing)), pad(factors.A_RI, (0, 0, 0, missing)))
