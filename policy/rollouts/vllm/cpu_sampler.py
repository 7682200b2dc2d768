"""Seeded sampling of vLLM's CPU backend with one random number per token.

vLLM 0.31 samples a token with one exponential random number per vocabulary entry, twice for requests with
seeds: a third of the time of a small model on a CPU (`forward_cpu` in
`vllm/v1/sample/ops/topk_topp_sampler.py`). Inverse transform sampling needs one uniform number and gives the
same distribution.

Shapes: N sequences, V vocabulary entries, in B blocks of W.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 256
"""Vocabulary entries of a block."""


def use_inverse_distribution() -> None:
    """Replace the sampler of vLLM's CPU backend for batches in which every sequence has its own seed."""
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
    """ids_N: the first id at which the cumulative probability exceeds a uniform number from the sequence's
    generator.

    The block is found first, then the id in it, so that the vocabulary is summed only once.
    """
    sequences, words = probabilities_NV.shape
    uniform_N1 = torch.stack(
        [torch.rand(1, dtype=torch.float64, generator=generators[n]) for n in range(sequences)]
    )
    blocks_NBW = functional.pad(probabilities_NV, (0, -words % BLOCK)).view(sequences, -1, BLOCK)
    sums_NB = blocks_NBW.sum(dim=-1, dtype=torch.float64)
    cumulative_NB = sums_NB.cumsum(dim=-1)
    level_N1 = uniform_N1 * cumulative_NB[:, -1:]
    block_N1 = _first_above(cumulative_NB, level_N1)
    level_N1 -= cumulative_NB.gather(1, block_N1) - sums_NB.gather(1, block_N1)
    within_NW = blocks_NBW[torch.arange(sequences), block_N1[:, 0]].cumsum(dim=-1, dtype=torch.float64)
    words_N1 = block_N1 * BLOCK + _first_above(within_NW, level_N1)
    return words_N1.squeeze(1).clamp_(max=words - 1)


def _first_above(cumulative_NC: Tensor, level_N1: Tensor) -> Tensor:
    """The first index above the level; the last one where rounding leaves none."""
    return torch.searchsorted(cumulative_NC, level_N1, right=True).clamp_(max=cumulative_NC.shape[1] - 1)
