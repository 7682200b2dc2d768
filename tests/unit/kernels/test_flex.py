"""FlexAttention's masks and forward pass against the dense mask; on a CPU, where it has no backward pass."""

from __future__ import annotations

import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.attention.flex_attention import create_mask, flex_attention
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations import flex_attention as vendor

from rlhf.distributed.sharding import full_tensor
from rlhf.kernels import attention, flex, inputs, layers
from rlhf.kernels.flex import BLOCK, FlexMasks, mask_mod, seen_pairs
from rlhf.kernels.last_layer import every_state
from rlhf.kernels.packed_batch import PADDING, PackedBatch
from rlhf.kernels.packing import GPU_GRAIN, Tree, pack
from rlhf.models.loading import load_causal


@pytest.fixture(scope="module")
def batch() -> PackedBatch:
    """Two padded rows: a common prefix, trunks longer and shorter than a block, branches across blocks."""
    generator = random.Random(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(generator.randrange(4, 260) for _ in range(count))

    start = ids(40)
    trees = [Tree(start + ids(150), (ids(90), ids(70), ids(5))), Tree(start + ids(3), (ids(140), ids(10)))]
    trees += [Tree(start + ids(30), (ids(300),))]
    (rows,) = pack(trees, 10_000, pad_id=0, short_row=512, grain=GPU_GRAIN)
    assert rows.ids_RT.shape == (2, 512)
    assert (rows.tree_RT == PADDING).any()
    return rows


def dense(batch: PackedBatch, window: int | None) -> Tensor:
    mask_R1TT = batch.mask_R1TT()
    if window is not None:
        positions_RT = batch.positions_RT
        mask_R1TT = mask_R1TT & (positions_RT[:, :, None] - positions_RT[:, None] < window)[:, None]
    return mask_R1TT


@pytest.mark.parametrize("window", [None, 30])
def test_mask_mod_equals_the_dense_mask(batch: PackedBatch, window: int | None) -> None:
    rows, tokens = batch.ids_RT.shape
    row, query, key = torch.meshgrid(*map(torch.arange, (rows, tokens, tokens)), indexing="ij")
    assert torch.equal(mask_mod(batch, window)(row, row, query, key), dense(batch, window)[:, 0])


def test_block_counts_from_spans_equal_those_of_the_mask(batch: PackedBatch) -> None:
    rows, tokens = batch.ids_RT.shape
    blocks = tokens // BLOCK
    pairs = batch.mask_R1TT().view(rows, blocks, BLOCK, blocks, BLOCK).sum(dim=(2, 4))
    assert torch.equal(seen_pairs(batch), pairs)
    full = FlexMasks(batch).within(None)
    assert torch.equal(full.full_kv_num_blocks[:, 0], (pairs == BLOCK**2).sum(dim=-1))
    assert torch.equal(full.kv_num_blocks[:, 0], ((pairs > 0) & (pairs < BLOCK**2)).sum(dim=-1))
    assert (pairs == BLOCK**2).any() and (pairs == 0).sum() > blocks * (blocks - 1) * rows / 2


def test_a_mask_is_built_once(batch: PackedBatch) -> None:
    masks = FlexMasks(batch)
    assert masks.within(None) is masks.within(None)
    assert masks.within(30) is not masks.within(None)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention on a CPU, without a compiler."""
    monkeypatch.setattr(flex, "is_usable", lambda device: True)
    monkeypatch.setattr(vendor, "WrappedFlexAttention", lambda training: lambda: flex_attention)


def tensors(batch: PackedBatch) -> tuple[Tensor, Tensor, Tensor]:
    rows, tokens = batch.ids_RT.shape
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(rows, heads, tokens, 16, generator=generator) for heads in (6, 2, 2))
    return q, k, v


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("window", [None, 30])
def test_forward_equals_sdpa_with_the_dense_mask(batch: PackedBatch, window: int | None) -> None:
    """Six query heads on two key heads, with and without a sliding window."""
    q, k, v = tensors(batch)
    module: Any = SimpleNamespace(training=False)
    ours, _ = attention.packed_attention(
        module, q, k, v, None, blocks=FlexMasks(batch), scaling=0.3, sliding_window=window
    )
    theirs = F.scaled_dot_product_attention(
        q, k, v, attn_mask=dense(batch, window), scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("reason", ["dropout", "small heads"])
def test_unsupported_layers_use_the_dense_mask(batch: PackedBatch, reason: str, eager: None) -> None:
    q, k, v = tensors(batch)
    if reason == "small heads":
        q, k, v = q[..., :8], k[..., :8], v[..., :8]
    dropout = 1e-9 if reason == "dropout" else 0.0
    module: Any = SimpleNamespace(training=False, num_key_value_groups=3)
    ours, _ = attention.packed_attention(
        module, q, k, v, None, blocks=FlexMasks(batch), scaling=0.3, dropout=dropout
    )
    theirs = F.scaled_dot_product_attention(
        q, k, v, attn_mask=dense(batch, None), scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("fast", [True, False])
def test_a_model_gives_the_same_states_as_on_a_cpu(
    tiny_base: Any, batch: PackedBatch, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the whole model, with our attention or transformers', which gets the dense mask."""
    model = load_causal(
        str(tiny_base), revision=None, dtype="float32", quantization="none", fast_layers=fast
    ).eval()
    with torch.no_grad():
        expected = every_state(model.base_model, **inputs.packed_inputs(batch))
        monkeypatch.setattr(flex, "is_usable", lambda device: True)
        monkeypatch.setattr(vendor, "WrappedFlexAttention", lambda training: lambda: flex_attention)
        states_RTD = every_state(model.base_model, **inputs.packed_inputs(batch))
    real = batch.tree_RT != PADDING
    assert (states_RTD[real] - expected[real]).abs().max() < 1e-4


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Any:
    """FlexAttention compiled on a CPU; the result counts compilations."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    function = torch.compile(flex_attention, backend=counter)
    monkeypatch.setattr(vendor, "WrappedFlexAttention", lambda training: lambda: function)
    return counter


def attend(rows: PackedBatch) -> None:
    q, k, v = tensors(rows)
    module: Any = SimpleNamespace(training=False)
    attention.packed_attention(module, q, k, v, None, blocks=FlexMasks(rows), scaling=0.3)


def packed_rows(length: int, rows: int = 1) -> PackedBatch:
    trees = [Tree((1, 2), ((3,) * length, (4,) * 20))] * rows
    (batch,) = pack(trees, 10_000, pad_id=0, grain=GPU_GRAIN, short_row=length + 30)
    assert len(batch.ids_RT) == rows
    return batch


@pytest.mark.slow
def test_later_row_lengths_do_not_recompile(compiled: Any) -> None:
    """The second length makes the shapes dynamic, the third compiles nothing; nor do shorter ones."""
    counts = []
    for length in (100, 300, 600, 500, 900, 200):
        attend(packed_rows(length))
        counts.append(compiled.frame_count)
    assert counts[2:] == [counts[2]] * 4


@pytest.mark.slow
def test_every_form_of_a_run_is_compiled(compiled: Any) -> None:
    """torch keeps 8 by default; the ninth materialises all scores: here, an update after the scoring."""
    modes = (torch.inference_mode, torch.no_grad, torch.enable_grad)
    for mode in modes:
        for rows in (1, 2):
            for length in (60, 200, 400):  # one block; static; any length
                with mode():
                    attend(packed_rows(length, rows))
    assert compiled.frame_count > 8
    before = compiled.frame_count
    with torch.enable_grad():
        attend(packed_rows(600, 3))
    assert compiled.frame_count == before
    assert len(modes) * 2 * 2 <= before <= len(modes) * 2 * 3 <= flex.COMPILED_FORMS


@pytest.fixture
def process_group() -> Iterator[DeviceMesh]:
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_gradients_with_windows_checkpointing_and_fsdp2(
    batch: PackedBatch, process_group: DeviceMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four query heads on two key heads. The kernel is a stand-in that reads the BlockMask: FlexAttention's
    own has no backward pass on a CPU."""
    seen: list[Any] = []

    def kernel(query: Tensor, key: Tensor, value: Tensor, *, block_mask: Any, scale: float, **_: Any) -> Any:
        seen.append(block_mask)
        rows, _, tokens, _ = query.shape
        mask_R1TT = create_mask(block_mask.mask_mod, rows, 1, tokens, tokens, device="cpu")
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask_R1TT, scale=scale, enable_gqa=True
        )

    config = AutoConfig.for_model(
        "mistral", vocab_size=260, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=40, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()
    layers.enable(model)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        states_RTD = every_state(model.base_model, **inputs.packed_inputs(batch))
        states_RTD[batch.tree_RT != PADDING].square().sum().backward()
        return [full_tensor(parameter.grad) for parameter in model.base_model.parameters()]

    expected = [gradient.clone() for gradient in gradients()]
    monkeypatch.setattr(flex, "is_usable", lambda device: True)
    monkeypatch.setattr(vendor, "WrappedFlexAttention", lambda training: lambda: kernel)
    model.gradient_checkpointing_enable()
    for layer in (*model.base_model.layers, model):
        fully_shard(layer, mesh=process_group)
    model(input_ids=batch.ids_RT[:, :4])  # makes the whole model FSDP's root
    for ours, theirs in zip(gradients(), expected, strict=True):
        assert (ours - theirs).norm() < 1e-4 * theirs.norm()
    assert len(seen) == 2 * 2  # each layer forwards, and again for its backward pass
    assert len({id(mask) for mask in seen}) == 1
