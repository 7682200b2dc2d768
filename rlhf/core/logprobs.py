"""Log-probabilities of given tokens, without ever holding the logits of a whole row.

Shapes: M tokens whose probability is asked for, D hidden units, V words, C tokens of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK = 512
"""Tokens whose logits are held at once: 512 x 128,256 words in float32 are 262 MB."""


def token_logprobs(
    hidden_MD: Tensor, head_VD: Tensor, targets_M: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """(logps_M, entropy_M) of softmax(hidden W' / temperature); only logps carry a gradient, and only to `hidden_MD`.

        logp_m = z_m[target] - log sum_v exp z_m[v],  z = hidden W' / temperature
        entropy_m = - sum_v p_m[v] log p_m[v]

    The head is frozen: it has no gradient. The products are in the head's number format, the rest in float32; the
    logits are computed again in the backward pass.

    Raises:
        ValueError: shapes that do not belong together.
    """
    if hidden_MD.shape[0] != targets_M.shape[0] or hidden_MD.shape[1] != head_VD.shape[1]:
        raise ValueError(f"shapes {tuple(hidden_MD.shape)}, {tuple(head_VD.shape)}, {tuple(targets_M.shape)}")
    return _TokenLogprobs.apply(hidden_MD.to(head_VD.dtype), head_VD.detach(), targets_M, temperature)  # type: ignore[no-any-return,no-untyped-call]


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_MD: Tensor, head_VD: Tensor, targets_M: Tensor, temperature: float) -> Any:
        logps, entropies, sums = [], [], []
        for hidden_CD, targets_C in zip(*_chunks(hidden_MD, targets_M), strict=True):
            logits_CV = (hidden_CD @ head_VD.T).float().div_(temperature)
            log_sum_C = logits_CV.logsumexp(dim=1)
            logps.append(logits_CV.gather(1, targets_C[:, None]).squeeze(1) - log_sum_C)
            # H = log sum exp z - sum_v p_v z_v
            probabilities_CV = (logits_CV - log_sum_C[:, None]).exp_()
            entropies.append(log_sum_C - probabilities_CV.mul_(logits_CV).sum(dim=1))
            sums.append(log_sum_C)
        log_sum_M = torch.cat(sums) if sums else hidden_MD.new_zeros(0).float()
        ctx.save_for_backward(hidden_MD, head_VD, targets_M, log_sum_M)
        ctx.temperature = temperature
        entropy_M = torch.cat(entropies) if entropies else log_sum_M.clone()
        ctx.mark_non_differentiable(entropy_M)
        return (torch.cat(logps) if logps else log_sum_M.clone()), entropy_M

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        gradient_M = gradients[0]
        hidden_MD, head_VD, targets_M, log_sum_M = ctx.saved_tensors
        parts = []
        for hidden_CD, targets_C, log_sum_C, gradient_C in zip(
            hidden_MD.split(CHUNK),
            targets_M.split(CHUNK),
            log_sum_M.split(CHUNK),
            gradient_M.split(CHUNK),
            strict=True,
        ):
            # d logp / d z = onehot(target) - p
            logits_CV = (hidden_CD @ head_VD.T).float().div_(ctx.temperature)
            slope_CV = logits_CV.sub_(log_sum_C[:, None]).exp_().neg_()
            slope_CV.scatter_add_(1, targets_C[:, None], torch.ones_like(slope_CV[:, :1]))
            slope_CV.mul_((gradient_C / ctx.temperature)[:, None])
            parts.append(slope_CV.to(head_VD.dtype) @ head_VD)
        return (torch.cat(parts) if parts else torch.zeros_like(hidden_MD)), None, None, None


def _chunks(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    return [torch.split(tensor, CHUNK) for tensor in tensors]
