"""What loading takes of a machine's memory."""

from __future__ import annotations

import pytest

from rlhf.plan.memory.weights import loading_bytes

W = 1000


@pytest.mark.parametrize(
    ("quantization", "sharded", "offloaded", "expected"),
    [
        ("none", False, False, 8 * W),  # every process reads
        ("none", True, False, W),  # one reads, the others reserve
        ("none", True, True, 2 * W),  # and the shards stay
        ("nf4", False, False, 0),  # straight to the GPU
        ("nf4", True, False, 8 * W),  # every process makes its own
        ("nf4", True, True, 8 * W),  # the shards are pieces of it
    ],
)
def test_by_format_and_sharding(quantization: str, sharded: bool, offloaded: bool, expected: int) -> None:
    result = loading_bytes(W, quantization, sharded=sharded, offloaded=offloaded, processes=8)
    assert result == expected
