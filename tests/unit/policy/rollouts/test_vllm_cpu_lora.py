"""What our products add against vLLM's own, on random inputs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from policy.rollouts.vllm import cpu_lora as vllm_cpu_lora

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed")

RANK, WIDTH, ADAPTERS = 8, 24, 3
ADAPTER_OF_TOKEN = pytest.mark.parametrize(
    "adapter_of_token",
    [[0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 2, 1, 2, 0], [2]],
    ids=["all of one", "all of another", "mixed", "one token"],
)
SLICES = pytest.mark.parametrize("slices", [(40,), (40, 16, 16)], ids=["one part", "query, key and value"])
NO_PRODUCT = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="oneDNN has no bfloat16 product for this processor, which computes bases in float32",
)
FORMATS = pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=NO_PRODUCT)])


@pytest.fixture(scope="module")
def stock() -> Callable[..., None]:
    """vLLM's own product, also where this process has replaced it already."""
    import vllm.lora.punica_wrapper.punica_cpu as module

    spec = importlib.util.spec_from_file_location("vllm.lora.punica_wrapper.stock_cpu", module.__file__)
    assert spec is not None and spec.loader is not None
    original: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(original)

    def add(y: Any, x: Any, a: Any, b: Any, scale: float, slices: Any, adapter_of_token: Any) -> None:
        wrapper = original.PunicaWrapperCPU(len(x), len(x), "cpu")
        wrapper._token_lora_indices[: len(x)] = adapter_of_token
        wrapper.indices_len[0] = len(x)
        wrapper.add_lora_linear(y, x, a, b, scale, slices)

    return add


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def stacks(slices: tuple[int, ...], dtype: torch.dtype) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    a = tuple(torch.randn(ADAPTERS, 1, RANK, WIDTH, dtype=dtype) for _ in slices)
    return a, tuple(torch.randn(ADAPTERS, 1, out, RANK, dtype=dtype) for out in slices)


def wrapper(adapter_of_token: Any) -> SimpleNamespace:
    return SimpleNamespace(
        tokens_by_adapter=vllm_cpu_lora.tokens_by_adapter(torch.tensor(adapter_of_token)), factors={}
    )


@ADAPTER_OF_TOKEN
@SLICES
@FORMATS
def test_the_sum_is_vllms(
    stock: Callable[..., None], adapter_of_token: list[int], slices: tuple[int, ...], dtype: torch.dtype
) -> None:
    a, b = stacks(slices, dtype)
    x = torch.randn(len(adapter_of_token), WIDTH, dtype=dtype)
    start = torch.randn(len(adapter_of_token), sum(slices), dtype=dtype)
    ours, theirs = start.clone(), start.clone()
    vllm_cpu_lora.add_lora_linear(wrapper(adapter_of_token), ours, x, a, b, 0.5, slices)
    stock(theirs, x, a, b, 0.5, slices, torch.tensor(adapter_of_token))
    by_hand = start.float().clone()
    for token, adapter in enumerate(adapter_of_token):
        parts = [
            0.5 * outer[adapter, 0].float() @ inner[adapter, 0].float() @ x[token].float()
            for inner, outer in zip(a, b, strict=True)
        ]
        by_hand[token] += torch.cat(parts)
    # bfloat16 keeps eight bits, of numbers up to about 60
    tolerance = 1e-4 if dtype == torch.float32 else 0.3
    assert torch.allclose(ours.float(), by_hand, atol=tolerance, rtol=0)
    assert torch.allclose(theirs.float(), by_hand, atol=tolerance, rtol=0)
    assert not torch.allclose(ours.float(), start.float(), atol=10 * tolerance, rtol=0)


@pytest.mark.parametrize("adapter_of_token", [[-1, 0, -1], [-1, -1, -1]])
def test_a_token_without_an_adapter_is_left_as_it_is(adapter_of_token: list[int]) -> None:
    """vLLM marks it by -1, which its own functions take for the last adapter."""
    a, b = stacks((40,), torch.float32)
    start = torch.randn(3, 40)
    ours = start.clone()
    vllm_cpu_lora.add_lora_linear(wrapper(adapter_of_token), ours, torch.randn(3, WIDTH), a, b, 1.0, (40,))
    assert [bool((row != before).any()) for row, before in zip(ours, start, strict=True)] == [
        adapter >= 0 for adapter in adapter_of_token
    ]


def test_they_are_put_where_vllm_looks_them_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a layer's joined factors are forgotten when an adapter is written into the layers, not at every
    step."""
    from vllm.lora.model_manager import LoRAModelManager
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    before = dict(vars(PunicaWrapperCPU))
    for name in ("update_metadata", "add_lora_linear", "add_lora_embedding", "add_lora_logits", "factors"):
        monkeypatch.setattr(
            PunicaWrapperCPU, name, before.get(name, {}), raising=False
        )  # put back afterwards
    written = iter([True, False])
    monkeypatch.setattr(PunicaWrapperCPU, "add_lora_linear", None)  # as if nothing were replaced yet
    monkeypatch.setattr(PunicaWrapperCPU, "update_metadata", lambda self: None)
    monkeypatch.setattr(LoRAModelManager, "activate_adapter", lambda self, lora_id: next(written))
    vllm_cpu_lora.use_matrix_products()
    assert PunicaWrapperCPU.add_lora_linear is vllm_cpu_lora.add_lora_linear

    made: Any = PunicaWrapperCPU(4, 4, "cpu")
    made._token_lora_indices[:] = torch.tensor([1, 1, -1, 1])
    made.indices_len[0] = 4
    made.update_metadata()
    assert {adapter: tokens.tolist() for adapter, tokens in made.tokens_by_adapter.items()} == {1: [0, 1, 3]}

    manager: Any = SimpleNamespace(punica_wrapper_mapping={"language_model": made})
    made.factors = {"old": ()}
    assert LoRAModelManager.activate_adapter(manager, 7) and made.factors == {}
    made.factors = {"still right": ()}
    assert not LoRAModelManager.activate_adapter(manager, 7) and made.factors == {"still right": ()}
