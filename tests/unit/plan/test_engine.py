"""vLLM's arithmetic on Llama-3.1's public figures."""

from __future__ import annotations

import pytest

from rlhf.plan.memory.engine import (
    GRAPHS,
    decode_seconds,
    engine_memory,
    paged_memory,
    token_bytes,
    weight_bytes,
    working_bytes,
)
from rlhf.plan.memory.shapes import load_shape

SHAPE_8B = load_shape("meta-llama/Llama-3.1-8B-Instruct")
SHAPE_70B = load_shape("meta-llama/Llama-3.1-70B-Instruct")
GIB = 2**30


def test_a_token_of_the_8b_takes_128_kib_of_cache() -> None:
    assert token_bytes(SHAPE_8B, 2) == 2 * 32 * 8 * 128 * 2 == 128 * 1024


def test_weights_are_the_published_parameter_counts() -> None:
    # 8,030,261,248 and 70,553,706,496 parameters, of which norms are left out
    assert weight_bytes(SHAPE_8B, 1, "none") == pytest.approx(8_030_261_248, rel=1e-4)
    assert weight_bytes(SHAPE_70B, 2, "none") == pytest.approx(2 * 70_553_706_496, rel=1e-4)
    outer = 2 * 128_256 * 8192
    four_bits = (70_553_706_496 - outer) * (0.5 + 4 / 64) + 2 * outer
    assert weight_bytes(SHAPE_70B, 2, "nf4") == pytest.approx(four_bits, rel=1e-4)


def engine(gib: float, parallel: int = 1, shape: object = SHAPE_8B):  # type: ignore[no-untyped-def]
    return engine_memory(
        shape,
        budget=int(gib * GIB),
        parallel=parallel,
        dtype_bytes=2,
        quantization="none",
        sequences=128,
        max_model_len=4000,
        batched_tokens=8192,
    )


def test_the_cache_is_what_is_left() -> None:
    memory = engine(40)
    assert memory.weights + memory.working + memory.cache == 40 * GIB
    assert memory.working == working_bytes(SHAPE_8B, 2, 128, 4000, 8192) + GRAPHS
    assert memory.at_once == memory.cache // (4000 * 128 * 1024)  # 4,000 tokens are whole blocks of 16


def test_an_engine_without_room_for_one_sequence_does_not_start() -> None:
    assert engine(15).at_once == 0
    assert engine(15).cache == 0


def test_weights_and_heads_are_split_between_gpus() -> None:
    memory = engine(70, parallel=4, shape=SHAPE_70B)
    assert memory.weights == weight_bytes(SHAPE_70B, 2, "none") // 4
    assert memory.token_bytes == token_bytes(SHAPE_70B, 2) // 4


def test_a_step_reads_weights_and_cache() -> None:
    sizes = {"weights": 16 * 10**9, "token_bytes": 131_072, "sequences": 10, "context": 500}
    read = 16 * 10**9 + 10 * 500 * 131_072
    seconds = decode_seconds(**sizes, bandwidth=1e12, flops=1e18, parameters=8e9)
    assert seconds == pytest.approx(read / 0.6e12)
    bound = decode_seconds(**sizes, bandwidth=1e18, flops=1e12, parameters=8e9)
    assert bound == pytest.approx(2 * 8e9 * 10 / 1e12)


def test_a_paged_cache_takes_its_share_of_what_is_free() -> None:
    memory = paged_memory(
        SHAPE_70B, free=40 * GIB, dtype_bytes=2, sequences=128, max_model_len=4088, batched_tokens=4096
    )
    assert memory.working == 4096 * (8192 * 2 + 128_256 * 4)
    assert memory.cache == int(0.8 * 40 * GIB) - memory.working
    assert memory.at_once == memory.cache // (
        4096 * token_bytes(SHAPE_70B, 2)
    )  # 4,088 tokens are 128 blocks of 32
    assert memory.weights == 0  # the trainer's are its own
