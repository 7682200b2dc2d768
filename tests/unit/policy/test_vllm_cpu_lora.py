"""Our three operations against vLLM's own, on random inputs."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from policy.rollouts import vllm_cpu_lora

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed")

RANK, WIDTH, OUT = 8, 24, 40
ADAPTERS = pytest.mark.parametrize(
    "adapter_of_token",
    [[0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 2, 1, 2, 0], [2]],
    ids=["all of one", "all of another", "mixed", "one token"],
)
FORMATS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@pytest.fixture(scope="module")
def vllm_ops() -> SimpleNamespace:
    """vLLM's own functions, also where this process has replaced them already."""
    import vllm.lora.ops.torch_ops.lora_ops as stock

    spec = importlib.util.spec_from_file_location("stock_lora_ops", stock.__file__)
    assert spec is not None and spec.loader is not None
    original: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(original)
    return SimpleNamespace(
        shrink=original.bgmv_shrink, expand=original.bgmv_expand, expand_slice=original.bgmv_expand_slice
    )


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    tolerance = 1e-5 if ours.dtype == torch.float32 else 0.1  # bfloat16 keeps eight bits of numbers up to 30
    return torch.allclose(ours, theirs, atol=tolerance, rtol=tolerance)


@ADAPTERS
@FORMATS
@pytest.mark.parametrize("padded_rank", [RANK, 16])
def test_shrink(
    vllm_ops: SimpleNamespace, adapter_of_token: list[int], dtype: torch.dtype, padded_rank: int
) -> None:
    tokens = torch.tensor(adapter_of_token)
    inputs = torch.randn(len(tokens), WIDTH, dtype=dtype)
    weights = torch.randn(3, 1, RANK, WIDTH, dtype=dtype)
    start = torch.randn(len(tokens), padded_rank)  # float32, as vLLM's buffer is; what lies beyond RANK stays
    ours, theirs = start.clone(), start.clone()
    vllm_cpu_lora.shrink(inputs, weights, ours, tokens, 0.5)
    vllm_ops.shrink(inputs, weights, theirs, tokens, 0.5)
    assert close(ours, theirs)
    by_hand = torch.stack(
        [0.5 * weights[a, 0].float() @ row.float() for a, row in zip(adapter_of_token, inputs, strict=True)]
    )
    assert torch.allclose(ours[:, :RANK], by_hand, atol=1e-4)
    assert torch.equal(ours[:, RANK:], start[:, RANK:])


@ADAPTERS
@FORMATS
@pytest.mark.parametrize("out", [OUT, OUT - 8, OUT + 8], ids=["equal", "narrower", "wider"])
@pytest.mark.parametrize("add", [True, False])
def test_expand(
    vllm_ops: SimpleNamespace, adapter_of_token: list[int], dtype: torch.dtype, out: int, add: bool
) -> None:
    tokens = torch.tensor(adapter_of_token)
    inputs = torch.randn(len(tokens), RANK)
    weights = torch.randn(3, 1, OUT, RANK, dtype=dtype)
    start = torch.randn(len(tokens), out, dtype=dtype)
    ours, theirs = start.clone(), start.clone()
    vllm_cpu_lora.expand(inputs, weights, ours, tokens, add)
    vllm_ops.expand(inputs, weights, theirs, tokens, add)
    assert close(ours, theirs)
    assert not torch.equal(ours, start)


@ADAPTERS
@FORMATS
@pytest.mark.parametrize("add", [True, False])
def test_expand_slice(
    vllm_ops: SimpleNamespace, adapter_of_token: list[int], dtype: torch.dtype, add: bool
) -> None:
    tokens = torch.tensor(adapter_of_token)
    inputs = torch.randn(len(tokens), RANK)
    weights = torch.randn(3, 1, OUT, RANK, dtype=dtype)
    start = torch.randn(len(tokens), 3 * OUT, dtype=dtype)  # as a fused query, key and value have it
    ours, theirs = start.clone(), start.clone()
    vllm_cpu_lora.expand_slice(inputs, weights, ours, tokens, OUT, OUT, add)
    vllm_ops.expand_slice(inputs, weights, theirs, tokens, OUT, OUT, add)
    assert close(ours, theirs)
    untouched = [slice(0, OUT), slice(2 * OUT, 3 * OUT)]
    assert all(torch.equal(ours[:, part], start[:, part]) for part in untouched)


def test_a_token_without_an_adapter_is_left_as_it_is() -> None:
    """vLLM marks it by -1, which its own functions take for the last adapter."""
    tokens = torch.tensor([-1, 0, -1])
    start = torch.randn(3, OUT)
    ours = start.clone()
    vllm_cpu_lora.expand(torch.randn(3, RANK), torch.randn(2, 1, OUT, RANK), ours, tokens)
    assert torch.equal(ours[[0, 2]], start[[0, 2]])
    assert not torch.equal(ours[1], start[1])


def test_they_are_put_where_vllm_looks_them_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    names = {"bgmv_shrink": "shrink", "bgmv_expand": "expand", "bgmv_expand_slice": "expand_slice"}
    for module in (lora_ops, punica_cpu):
        for name in names:
            monkeypatch.setattr(module, name, getattr(module, name))  # put back after the test
    vllm_cpu_lora.use_matrix_products()
    for module in (lora_ops, punica_cpu):
        for name, ours in names.items():
            assert getattr(module, name) is getattr(vllm_cpu_lora, ours)
