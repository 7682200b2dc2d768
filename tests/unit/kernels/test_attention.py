"""Blockwise attention against SDPA with a dense mask; and which models use it."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf.kernels import attention
from rlhf.kernels.attention import Block, blocks_of, blockwise_attention
from rlhf.kernels.inputs import packed_inputs
from rlhf.kernels.packed_batch import PADDING, SHARED, PackedBatch, Span
from rlhf.kernels.packing import Tree, pack

HEADS, KEY_HEADS, UNITS = 4, 2, 8
few = settings(max_examples=40, deadline=None)
lengths = st.builds(
    lambda trunk, branches: Tree((1,) * trunk, tuple((1,) * length for length in branches)),
    st.integers(0, 12),
    st.lists(st.integers(1, 15), min_size=1, max_size=4),
)
forests = st.lists(lengths, min_size=1, max_size=5)
cuts = st.fixed_dictionaries(
    {
        "GRAIN": st.sampled_from([1, 4, 32]),
        "BLOCK_OVERHEAD": st.sampled_from([0, 30, 4096]),
        "KEEP_LIMIT": st.sampled_from([0, 256]),
    }
)
"""Block sizes, with probabilities kept and recomputed."""
rows = st.sampled_from([16, 256])


def batch_of(*trees: Tree, short_row: int = 256) -> PackedBatch:
    (batch,) = pack(trees, 10_000, pad_id=0, short_row=short_row)
    return batch


def tensors(batch: PackedBatch, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """q_RHTD, k_RKTD and v_RKTD in the memory layout of a projection's output."""
    generator = torch.Generator().manual_seed(0)
    rows, tokens = batch.ids_RT.shape

    def make(heads: int) -> Tensor:
        drawn = torch.randn(rows, tokens, heads, UNITS, generator=generator, dtype=torch.float64)
        return drawn.to(dtype).transpose(1, 2).requires_grad_()

    return make(HEADS), make(KEY_HEADS), make(KEY_HEADS)


def dense(batch: PackedBatch, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """out_RTHD by torch's SDPA, zero for padding."""
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=batch.mask_R1TT(), scale=scale, enable_gqa=True
    ).transpose(1, 2)
    return out * (batch.tree_RT != PADDING)[:, :, None, None]


def seen(batch: PackedBatch, blocks: list[Block]) -> Tensor:
    """The mask_RTT equal to the blocks; asserts that no query is in two of them."""
    rows, tokens = batch.ids_RT.shape
    mask_RTT = torch.zeros(rows, tokens, tokens, dtype=torch.bool)
    for block in blocks:
        columns = torch.cat([torch.arange(part.start, part.stop) for part in block.keys])
        visible = torch.ones(block.queries.stop - block.queries.start, len(columns), dtype=torch.bool)
        visible[:, -block.bias_QS.shape[1] :] = block.bias_QS == 0
        assert not mask_RTT[block.row, block.queries].any()
        mask_RTT[block.row, block.queries.start : block.queries.stop, columns] = visible
    return mask_RTT


@few
@given(forests, cuts, rows)
def test_blocks_equal_the_mask(forest: list[Tree], cut: dict[str, int], row: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cut.items():
            patch.setattr(attention, name, value)
        batch = batch_of(*forest, short_row=row)
        expected = batch.mask_R1TT()[:, 0] & (batch.tree_RT != PADDING)[:, :, None]
        assert torch.equal(seen(batch, blocks_of(batch)), expected)


@few
@given(forests, cuts, rows)
def test_outputs_and_gradients_are_those_of_the_dense_mask(
    forest: list[Tree], cut: dict[str, int], row: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cut.items():
            patch.setattr(attention, name, value)
        batch = batch_of(*forest, short_row=row)
        inputs = tensors(batch)
        ours = blockwise_attention(*inputs, blocks_of(batch), 0.3)
        theirs = dense(batch, *inputs, 0.3)
        assert torch.allclose(ours, theirs, atol=1e-12)
        upstream = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=ours.dtype)
        for gradient, expected in zip(
            torch.autograd.grad(ours, inputs, upstream),
            torch.autograd.grad(theirs, inputs, upstream),
            strict=True,
        ):
            assert torch.allclose(gradient, expected, atol=1e-12)


def test_block_sizes_are_multiples_of_the_grain() -> None:
    """Matrix products are set up per shape, so few shapes are faster."""
    blocks = blocks_of(
        batch_of(*(Tree((1,) * trunk, ((1,) * 61, (1,) * 97)) for trunk in (31, 53)), short_row=400)
    )
    sizes = [
        (block.queries.stop - block.queries.start, sum(part.stop - part.start for part in block.keys))
        for block in blocks
    ]
    assert len(sizes) > 2
    assert all(queries % attention.GRAIN == keys % attention.GRAIN == 0 for queries, keys in sizes[:-1])


def test_gradients_equal_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "GRAIN", 2)
    monkeypatch.setattr(attention, "BLOCK_OVERHEAD", 0)
    batch = batch_of(Tree((1, 1), ((1, 1, 1, 1), (1, 1))), Tree((), ((1,),)))
    blocks = blocks_of(batch)
    assert len(blocks) > 3
    assert torch.autograd.gradcheck(lambda q, k, v: blockwise_attention(q, k, v, blocks, 0.4), tensors(batch))


def test_hand_computed_case() -> None:
    """One head of one unit: the second token weights the first by e^(2 x 0.5) and itself by e^(4 x 0.5)."""
    batch = batch_of(Tree((), ((1, 1),)))
    q, k, v = (torch.zeros(1, 1, 16, 1) for _ in range(3))
    q[..., 1, 0], k[..., 0, 0], k[..., 1, 0] = 2.0, 1.0, 2.0
    v[..., 0, 0], v[..., 1, 0] = 10.0, 20.0
    out = blockwise_attention(q, k, v, blocks_of(batch), 0.5)[0, :, 0, 0]
    first, second = torch.e**1, torch.e**2
    assert out[0] == 10
    assert out[1].item() == pytest.approx((10 * first + 20 * second) / (first + second), rel=1e-6)
    assert out[2:].eq(0).all()


def test_bfloat16_error_is_like_torchs() -> None:
    batch = batch_of(Tree((1,) * 40, ((1,) * 150, (1,) * 90)))
    truth = dense(batch, *tensors(batch), UNITS**-0.5)
    rounded = tensors(batch, torch.bfloat16)
    ours = (blockwise_attention(*rounded, blocks_of(batch), UNITS**-0.5) - truth).norm()
    theirs = (dense(batch, *rounded, UNITS**-0.5) - truth).norm()
    assert ours < 1.3 * theirs


@pytest.mark.parametrize("length", [1024, 512, 128])
def test_memory_is_linear_in_the_tokens(length: int) -> None:
    """The backward pass keeps queries, keys and values, and probabilities only of short rows."""
    batch = batch_of(Tree((), ((1,) * length,)))
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        blockwise_attention(*tensors(batch), blocks_of(batch), 1.0)
    probabilities = HEADS * length * length if length == 128 else 0
    assert sum(kept) == length * UNITS * (HEADS + 2 * KEY_HEADS) + probabilities


SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
MODELS: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {},
    "Gemma": {},
    "Mistral": {"sliding_window": None},
}
WINDOWED: dict[str, dict[str, Any]] = {
    "Mistral": {"sliding_window": 5},
    "Gemma3Text": {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
}


def build(name: str, extra: dict[str, Any]) -> Any:
    config = getattr(transformers, f"{name}Config")(**SIZES, **extra)
    causal = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")
    torch.manual_seed(0)
    model = causal(config).eval()
    attention.enable(model)
    return model


def largest_difference_from_alone(model: Any, batch: PackedBatch, forest: list[Tree]) -> float:
    """The largest difference between states of a packed row and of its sequences alone (eager attention)."""
    with torch.no_grad():
        packed = model.model(**packed_inputs(batch), use_cache=False).last_hidden_state
        model.set_attn_implementation("eager")  # transformers' windows and mask
        worst, branch = 0.0, 0
        for number, tree in enumerate(forest):
            for tokens in tree.branches:
                selected = torch.isin(batch.branch_RT, torch.tensor([-1, branch]))
                selected &= torch.isin(batch.tree_RT, torch.tensor([SHARED, number]))
                alone = model.model(
                    input_ids=torch.tensor([tree.trunk + tokens]), use_cache=False
                ).last_hidden_state[0]
                worst = max(worst, float((packed[selected] - alone).abs().max()))
                branch += 1
    return worst


FOREST = [Tree(tuple(range(1, 9)), (tuple(range(9, 20)), tuple(range(20, 26)))), Tree((), ((3, 4, 5),))]


@pytest.mark.parametrize("name", MODELS)
def test_blockwise_states_equal_those_of_the_sequences_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(name, MODELS[name])
    monkeypatch.setattr(attention, "sdpa_attention_forward", None)  # must not be called
    assert largest_difference_from_alone(model, batch_of(*FOREST), FOREST) < 1e-4


@pytest.mark.parametrize("name", WINDOWED)
def test_a_sliding_window_counts_tokens_of_the_sequence(name: str) -> None:
    assert largest_difference_from_alone(build(name, WINDOWED[name]), batch_of(*FOREST), FOREST) < 1e-4


def test_a_model_without_the_attention_interface_keeps_its_own(caplog: pytest.LogCaptureFixture) -> None:
    config = transformers.FalconConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, pad_token_id=0
    )
    model = transformers.FalconForCausalLM(config).eval()
    attention.enable(model)
    assert model.config._attn_implementation != attention.PACKED
    batch = batch_of(*FOREST)
    assert model.transformer(**packed_inputs(batch)).last_hidden_state.shape == (
        1,
        *batch.ids_RT.shape[1:],
        32,
    )


def test_padded_batches_and_generation_use_sdpa() -> None:
    model = build("Llama", {})
    ids, mask = torch.tensor([[0, 0, 5, 6], [1, 2, 3, 4]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])

    def answers() -> Tensor:
        return model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False)  # type: ignore[no-any-return]

    with torch.no_grad():
        logits, generated = model(input_ids=ids, attention_mask=mask).logits, answers()
        model.set_attn_implementation("sdpa")
        assert torch.equal(logits, model(input_ids=ids, attention_mask=mask).logits)
        assert torch.equal(generated, answers())


def test_there_are_blocks_on_a_cpu_only() -> None:
    batch = batch_of(*FOREST)
    assert blocks_of(batch) and not blocks_of(batch.to("meta"))


def test_blocks_skip_keys_that_no_query_attends_to() -> None:
    """Blocks of 160 queries and a remainder attend to 160, 320, 480 and 512 keys: 65 % of the square."""
    blocks = blocks_of(batch_of(Tree((), ((1,) * 512,))))
    assert [(block.queries.start, block.keys) for block in blocks] == [
        (start, (slice(0, min(start + 160, 512)),)) for start in (0, 160, 320, 480)
    ]
    second = dataclasses.replace(batch_of(Tree((1,) * 96, ((1,) * 160, (1,) * 160))))
    assert [(block.queries.start, block.keys) for block in blocks_of(second)] == [
        (0, (slice(0, 160),)),
        (160, (slice(0, 256),)),
        (256, (slice(0, 96), slice(256, 416))),
    ]
    assert second.spans == ((Span(0, 96), Span(96, 256, (slice(0, 96),)), Span(256, 416, (slice(0, 96),))),)


def test_a_mask_on_a_gpu_excludes_cudnn() -> None:
    """It builds a plan for every new row length."""
    query: Any = SimpleNamespace(device=torch.device("cuda"))
    mask_R1TT = torch.ones(1, 1, 2, 2, dtype=torch.bool)
    assert torch.backends.cuda.cudnn_sdp_enabled()
    for layer, mask, allowed in (
        (query, mask_R1TT, False),
        (query, None, True),
        (mask_R1TT, mask_R1TT, True),
    ):
        with attention._without_cudnn(layer, mask):
            assert torch.backends.cuda.cudnn_sdp_enabled() is allowed
            assert torch.backends.cuda.mem_efficient_sdp_enabled()
