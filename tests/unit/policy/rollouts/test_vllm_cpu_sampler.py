"""One uniform number a token draws from the distribution it is given, and from no other seed's."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from policy.rollouts.vllm import cpu_sampler as vllm_cpu_sampler
from policy.rollouts.vllm.cpu_sampler import draw

DRAWS = 4000


def seeded(*seeds: int) -> dict[int, torch.Generator]:
    return {place: torch.Generator().manual_seed(seed) for place, seed in enumerate(seeds)}


def test_words_come_as_often_as_they_are_likely() -> None:
    probabilities_V = torch.tensor([0.0, 0.5, 0.3, 0.0, 0.2, 0.0])
    words_N = draw(probabilities_V.expand(DRAWS, -1), seeded(*range(DRAWS)))
    shares_V = torch.bincount(words_N, minlength=6) / DRAWS
    assert (shares_V[[0, 3, 5]] == 0).all()
    # Five standard errors of a share of a half.
    assert torch.allclose(shares_V, probabilities_V, atol=5 * 0.5 / DRAWS**0.5)


def test_blocks_change_nothing() -> None:
    """Against one cumulative sum over all words, the last block not full."""
    words, sequences = 3 * vllm_cpu_sampler.BLOCK + 7, 500
    logits_NV = 3 * torch.randn(sequences, words, generator=torch.Generator().manual_seed(0))
    probabilities_NV = logits_NV.softmax(-1)
    cumulative_NV = probabilities_NV.double().cumsum(-1)
    seeds = range(sequences)
    levels_N = torch.cat([torch.rand(1, dtype=torch.float64, generator=g) for g in seeded(*seeds).values()])
    expected_N = (cumulative_NV <= levels_N[:, None] * cumulative_NV[:, -1:]).sum(-1)
    words_N = draw(probabilities_NV, seeded(*seeds))
    assert torch.equal(words_N, expected_N)
    assert words_N.max() >= 3 * vllm_cpu_sampler.BLOCK  # the last block is reached


def test_a_sequence_draws_from_its_own_seed_alone() -> None:
    probabilities_NV = torch.full((3, 1000), 1e-3)
    together = draw(probabilities_NV, seeded(5, 6, 7)).tolist()
    alone = [int(draw(probabilities_NV[:1], seeded(seed))) for seed in (5, 6, 7)]
    assert together == alone
    assert len(set(alone)) == 3
    generator = seeded(5)
    assert int(draw(probabilities_NV[:1], generator)) != int(draw(probabilities_NV[:1], generator))


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed")
def test_vllm_draws_so_where_every_sequence_has_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

    def stock(*_: Any) -> tuple[str, None]:
        return "stock", None

    monkeypatch.setattr(TopKTopPSampler, "forward_cpu", stock)
    vllm_cpu_sampler.use_inverse_distribution()
    sampler: Any = TopKTopPSampler.__new__(TopKTopPSampler)
    object.__setattr__(sampler, "use_fp64_gumbel", False)
    object.__setattr__(sampler, "logprobs_mode", "processed_logprobs")
    logits_NV = torch.tensor([[0.0, 50.0, 0.0], [50.0, 0.0, 0.0]])
    words_N, logps_NV = sampler.forward_cpu(logits_NV, seeded(1, 2), None, None)
    assert words_N.tolist() == [1, 0]
    assert torch.allclose(logps_NV, logits_NV.log_softmax(-1))
    assert sampler.forward_cpu(logits_NV, seeded(1), None, None)[0] == "stock"
    assert sampler.forward_cpu(logits_NV, seeded(1, 2), torch.tensor([2, 2]), None)[0] == "stock"
