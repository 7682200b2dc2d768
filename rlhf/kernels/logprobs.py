"""Log-probabilities of tokens, without materialising the logits of a whole row.

Shapes: M target tokens, D hidden units, V vocabulary entries, C tokens of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK = {"cpu": 128, "cuda": 1024}
"""Tokens whose logits are in memory at once, by device: 128 x 128,256 entries in float32 are 66 MB. More
overflow a CPU's caches, fewer leave a GPU idle."""


def token_logprobs(
    hidden_MD: Tensor, head_VD: Tensor, targets_M: Tensor, temperature: float, *, entropy: bool = True
) -> tuple[Tensor, Tensor]:
    """(logps_M, entropy_M) of softmax(hidden W' / temperature); only logps carry a gradient.

        logp_m = z_m[target] - log sum_v exp z_m[v],  z = hidden W' / temperature
        entropy_m = - sum_v p_m[v] log p_m[v]

    Entropy needs two more passes over the logits; with `entropy=False` it is zeros.

    Products are in the head's dtype, or autocast's, the rest in float32. Logits are recomputed in the
    backward pass. The gradient of a trained head is accumulated in float32; a frozen head has none.

    Raises:
        ValueError: the shapes do not match.
    """
    if hidden_MD.shape[0] != targets_M.shape[0] or hidden_MD.shape[1] != head_VD.shape[1]:
        raise ValueError(f"shapes {tuple(hidden_MD.shape)}, {tuple(head_VD.shape)}, {tuple(targets_M.shape)}")
    device = hidden_MD.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head_VD.dtype
    with torch.autocast(device, enabled=False):
        return _TokenLogprobs.apply(  # type: ignore[no-any-return,no-untyped-call]
            hidden_MD.to(dtype), head_VD, targets_M, temperature, entropy
        )


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_MD: Tensor, head_VD: Tensor, targets_M: Tensor, temperature: float, entropy: bool
    ) -> Any:
        weight_VD = head_VD.to(hidden_MD.dtype)
        logps_M, log_sum_M, entropy_M = hidden_MD.new_zeros(3, len(targets_M), dtype=torch.float32)
        for chunk in _chunks(targets_M):
            logits_CV = _logits(hidden_MD[chunk], weight_VD, temperature)
            logps_CV = torch.log_softmax(logits_CV, dim=1)
            targets = torch.arange(len(logits_CV), device=logits_CV.device), targets_M[chunk]
            logps_M[chunk] = logps_CV[targets]
            log_sum_M[chunk] = logits_CV[targets] - logps_CV[targets]
            if entropy:
                probabilities_CV = torch.exp(logps_CV, out=logits_CV)  # reuses the logits' memory
                entropy_M[chunk] = -torch.linalg.vecdot(probabilities_CV, logps_CV)
        ctx.save_for_backward(hidden_MD, head_VD, targets_M, log_sum_M)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy_M)
        return logps_M, entropy_M

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        gradient_M = gradients[0]
        hidden_MD, head_VD, targets_M, log_sum_M = ctx.saved_tensors
        weight_VD = head_VD.to(hidden_MD.dtype)
        needs_head = ctx.needs_input_grad[1]
        d_head_VD = torch.zeros_like(head_VD, dtype=torch.float32) if needs_head else None
        chunks = []
        for chunk in _chunks(targets_M):
            # d logp / d z = onehot(target) - p
            slope_CV = _logits(hidden_MD[chunk], weight_VD, ctx.temperature)
            scale_C1 = (gradient_M[chunk] / ctx.temperature)[:, None]
            slope_CV.sub_(log_sum_M[chunk, None]).exp_().mul_(-scale_C1)
            slope_CV.scatter_add_(1, targets_M[chunk, None], scale_C1)
            if d_head_VD is not None:
                d_head_VD.addmm_(slope_CV.T, hidden_MD[chunk].float())
            chunks.append(slope_CV.to(weight_VD.dtype) @ weight_VD)
        d_hidden_MD = torch.cat(chunks) if chunks else torch.zeros_like(hidden_MD)
        return d_hidden_MD, None if d_head_VD is None else d_head_VD.to(head_VD.dtype), None, None, None


def _chunks(targets_M: Tensor) -> list[slice]:
    size = CHUNK.get(targets_M.device.type, CHUNK["cuda"])
    return [slice(start, start + size) for start in range(0, len(targets_M), size)]


def _logits(hidden_CD: Tensor, head_VD: Tensor, temperature: float) -> Tensor:
    logits_CV = (hidden_CD @ head_VD.T).float()
    return logits_CV if temperature == 1 else logits_CV.div_(temperature)
