"""vLLM's sampling with seeds on a CPU, by one random number a token.

vLLM 0.31 draws a token by one exponential random number for each word of the vocabulary, and where requests have seeds, as
ours do, twice: a third of the time of a small model on a CPU (`forward_cpu` in `vllm/v1/sample/ops/topk_topp_sampler.py`). One uniform number
and the cumulative distribution give the same distribution.

Shapes: N sequences, V words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def use_inverse_distribution() -> None:
    """Replace the draw in vLLM's CPU backend where every sequence has a seed of its own."""
    from vllm.v1.sample.ops import topk_topp_sampler

    sampler = topk_topp_sampler.TopKTopPSampler
    stock = sampler.forward_cpu
    if stock.__module__ == __name__:
        return

    def forward_cpu(
        self: Any, logits: Tensor, generators: dict[int, torch.Generator], k: Tensor | None, p: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if len(generators) != logits.shape[0] or self.use_fp64_gumbel or k is not None or p is not None:
            return stock(self, logits, generators, k, p)  # type: ignore[no-any-return]
        logps = logits.log_softmax(dim=-1, dtype=torch.float32)
        to_return = {"processed_logits": logits, "processed_logprobs": logps}.get(self.logprobs_mode)
        return draw(logps.exp(), generators), to_return

    sampler.forward_cpu = forward_cpu


def draw(probabilities_NV: Tensor, generators: Mapping[int, torch.Generator]) -> Tensor:
    """words_N: the first word at which the cumulative probability exceeds a uniform number of the sequence's own."""
    uniform_N1 = torch.stack(
        [torch.rand(1, dtype=torch.float64, generator=generators[n]) for n in range(len(probabilities_NV))]
    )
    cumulative_NV = probabilities_NV.cumsum(dim=-1, dtype=torch.float64)
    words_N1 = torch.searchsorted(cumulative_NV, uniform_N1 * cumulative_NV[:, -1:], right=True)
    return words_N1.squeeze(1).clamp_(max=probabilities_NV.shape[1] - 1)
