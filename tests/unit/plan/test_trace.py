"""Traces against arithmetic done by hand, and against themselves: carried on from few layers, or run through
all.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from transformers import LlamaConfig

from rlhf.plan.memory.passes import UpdateRow
from rlhf.plan.memory.phases import KINDS
from rlhf.plan.memory.shapes import load_shape
from rlhf.plan.memory.trace import trace

SMALL = LlamaConfig(
    vocab_size=1000,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=False,
    pad_token_id=0,
)
ONE_LAYER = LlamaConfig(**{**SMALL.to_dict(), "num_hidden_layers": 1})
REWARD = UpdateRow(
    command="train-reward",
    tokens=256,
    sequences=8,
    logprob_tokens=0,
    dtype="bfloat16",
    quantization="none",
    checkpointing=False,
    rank=4,
    dropout=0.0,
    targets="all-linear",
    outputs=5,
)
POLICY = replace(REWARD, command="align-policy", logprob_tokens=200, outputs=1, rewards=1)

LAYERS = 4
LINEAR = 2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 256
"""Weights of the matrices of one layer of SMALL: queries and output, keys and values, the three of the
MLP."""
ADAPTER = 4 * (2 * (128 + 128) + 2 * (128 + 64) + 2 * (128 + 256) + (256 + 128))
"""Parameters of rank 4 on one layer."""
AFTER = 128 * 128 + 3 * 128 * 256
ADAPTER_AFTER = 4 * ((128 + 128) + 2 * (128 + 256) + (256 + 128))
"""Of these what comes after attention: in the last layer it is computed for the tokens that are read."""


@pytest.mark.parametrize(
    "row",
    [
        REWARD,
        replace(REWARD, checkpointing=True),
        replace(REWARD, quantization="nf4", dropout=0.1),
        replace(
            POLICY, checkpointing=True, tokens=16, logprob_tokens=9, rank=64, critic=True, reference=True
        ),  # gradients outweigh activations
        replace(POLICY, dtype="float32", targets=("q_proj", "v_proj")),
    ],
)
def test_few_layers_carried_on_are_all_layers(row: UpdateRow) -> None:
    carried_on, whole = trace(SMALL, row), trace(SMALL, row, whole=True)
    assert carried_on.flops == whole.flops
    for name, peak in whole.peaks.items():
        assert carried_on.peaks[name].total == peak.total, name
        kinds = {kind: size for kind, size in carried_on.peaks[name].kinds.items() if size}
        assert kinds == dict(peak.kinds), name
    for name in ("layer_bytes", "outer_bytes", "scale_bytes"):
        assert getattr(carried_on, name) == pytest.approx(getattr(whole, name), abs=0), name


def test_what_stands_still_is_counted_to_the_byte() -> None:
    kinds = trace(SMALL, POLICY).peaks["update"].kinds
    norms = LAYERS * 2 * 128 + 128
    frequencies = 2 * (32 // 2) * 4  # two float32 tables of half a head
    assert kinds["weights"] == 2 * (LAYERS * LINEAR + norms + 2 * 1000 * 128) + frequencies + 4 * 128 * 1
    assert kinds["adapters"] == 4 * LAYERS * ADAPTER * 2  # the policy's and the reward's, float32
    assert kinds["gradients"] == 4 * LAYERS * ADAPTER
    assert kinds["optimizer"] == 2 * 4 * LAYERS * ADAPTER


def test_a_critic_is_one_more_adapter_with_a_head_and_a_pass() -> None:
    plain, ppo = trace(ONE_LAYER, POLICY), trace(ONE_LAYER, replace(POLICY, critic=True))
    first = 4 * (ADAPTER + 128)  # float32, the head of one output included
    more = {"adapters": first, "gradients": first, "optimizer": 2 * first}
    for kind, size in more.items():
        assert ppo.peaks["update"].kinds[kind] - plain.peaks["update"].kinds[kind] == size
    assert "critic" not in plain.peaks
    # What the critic's own pass keeps is the policy's, without the head's logits.
    assert ppo.peaks["critic"].kinds["activations"] < ppo.peaks["update"].kinds["activations"]
    # Measured are the policy and the reference, by log-probabilities, and the critic.
    assert ppo.flops["measuring"] > 2.5 * plain.flops["measuring"]
    # The critic lacks the products with the vocabulary: forwards, again when backwards, and to the hidden
    # states.
    vocabulary = 3 * 2 * 200 * 128 * 1000
    assert ppo.flops["update"] - ppo.flops["critic"] == pytest.approx(vocabulary, rel=0.01)


def test_frozen_adapters_take_memory_for_weights_alone() -> None:
    plain = trace(ONE_LAYER, POLICY).peaks["update"].kinds
    more = trace(ONE_LAYER, replace(POLICY, rewards=2, reference=True)).peaks["update"].kinds
    assert more["adapters"] - plain["adapters"] == 2 * 4 * ADAPTER
    assert {kind: more[kind] for kind in ("gradients", "optimizer")} == {
        kind: plain[kind] for kind in ("gradients", "optimizer")
    }


def test_four_bits_are_half_a_byte_and_scales() -> None:
    packed = trace(SMALL, replace(REWARD, quantization="nf4"))
    plain = trace(SMALL, REWARD)
    weights = LAYERS * LINEAR
    tables = 4 * (16 + 1 + 256)  # the sixteen values, the offset, the values of the scales
    assert packed.scale_bytes == weights // 64 + LAYERS * (7 * tables + 4 * (1 + 1 + 1 + 1 + 3 * 2))
    saved = plain.peaks["update"].kinds["weights"] - packed.peaks["update"].kinds["weights"]
    assert saved == 2 * weights - weights // 2 - packed.scale_bytes


def test_flops_are_those_of_the_matrices() -> None:
    row = replace(REWARD, checkpointing=True)
    flops = trace(SMALL, row).flops
    unread = 256 - 8
    forward = 2 * 256 * LAYERS * (LINEAR + ADAPTER) - 2 * unread * (AFTER + ADAPTER_AFTER)
    attention = LAYERS * 4 * 256 * 256 * 128  # two products of T x T x hidden
    head, rotary = 2 * 8 * 128 * 5, 2 * 256 * 16
    assert flops["scoring"] == forward + attention + head + rotary
    # Backwards: the layers again; gradients to the inputs of all matrices, to the adapters', and two and a
    # half attentions.
    backward = 2 * 256 * LAYERS * (LINEAR + 2 * ADAPTER) - 2 * unread * (AFTER + 2 * ADAPTER_AFTER)
    backward += 2.5 * attention
    assert flops["update"] == pytest.approx(2 * forward + 2 * attention + backward, rel=0.02)


def test_checkpointing_keeps_one_hidden_state_a_layer() -> None:
    long = replace(REWARD, tokens=2048)
    plain = trace(SMALL, long).peaks["update"].kinds["activations"]
    kept = trace(SMALL, replace(long, checkpointing=True)).peaks["update"].kinds["activations"]
    assert kept < plain / 2
    deeper = SMALL.to_dict() | {"num_hidden_layers": 25}
    more = (
        trace(LlamaConfig(**deeper), replace(long, checkpointing=True)).peaks["update"].kinds["activations"]
    )
    assert more - kept == pytest.approx((25 - LAYERS) * 2 * 2048 * 128, rel=1e-3)


def test_the_real_70b_update() -> None:
    """LoRA r32 in bfloat16 on 4,096 tokens with gradient checkpointing."""
    shape = load_shape("meta-llama/Llama-3.1-70B-Instruct")
    row = replace(REWARD, tokens=4096, rank=32, checkpointing=True, outputs=1, sequences=4)
    peak = trace(shape, row).peaks["update"]
    attention, mlp = 2 * 8192 * 8192 + 2 * 8192 * 1024, 3 * 8192 * 28672
    weights = 80 * (attention + mlp + 2 * 8192) + 8192 + 128256 * 8192  # a classifier has no output embedding
    assert peak.kinds["weights"] == pytest.approx(2 * weights, rel=1e-6)
    inputs_and_outputs = 2 * (8192 + 8192) + 2 * (8192 + 1024) + 3 * (8192 + 28672)
    assert peak.kinds["adapters"] == pytest.approx(4 * 80 * 32 * inputs_and_outputs, rel=1e-3)
    assert peak.kinds["activations"] > 80 * 4096 * 8192 * 2
    assert 140 < peak.total / 2**30 < 147
    assert set(peak.kinds) <= set(KINDS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "row",
    [
        replace(REWARD, tokens=4096, rank=32, checkpointing=True, outputs=1, sequences=4),
        replace(
            POLICY,
            tokens=4096,
            rank=32,
            checkpointing=True,
            logprob_tokens=4096,
            sequences=4,
            quantization="nf4",
        ),
    ],
    ids=["reward", "policy in 4 bits"],
)
def test_the_real_70b_through_all_80_layers(row: UpdateRow) -> None:
    shape = load_shape("meta-llama/Llama-3.1-70B-Instruct")
    carried_on, whole = trace(shape, row), trace(shape, row, whole=True)
    assert shape.num_hidden_layers == 80
    assert carried_on.flops == whole.flops
    assert {name: peak.total for name, peak in carried_on.peaks.items()} == {
        name: peak.total for name, peak in whole.peaks.items()
    }
