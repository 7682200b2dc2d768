"""Per-GPU formulas on round numbers, derived here."""

from __future__ import annotations

import pytest

from rlhf.plan.memory.sharding import CONTEXT, NCCL, STRATEGIES, ModelFacts, allowance, moved_bytes
from rlhf.plan.memory.trace import Trace

KINDS = {"weights": 1000, "adapters": 80, "gradients": 80, "optimizer": 160, "activations": 300}
HELD = ModelFacts(Trace({}, {}, layer_bytes=90, outer_bytes=100, scale_bytes=0), layers=10)
FOUR_BITS = ModelFacts(Trace({}, {}, layer_bytes=90, outer_bytes=100, scale_bytes=200), layers=10)


def shared(strategy: str, n: int, held: ModelFacts = HELD) -> dict[str, int]:
    return STRATEGIES[strategy](KINDS, held, n)


def test_ddp_holds_everything_and_buckets_of_gradients() -> None:
    assert shared("ddp", 4) == {**KINDS, "buffers": 80}


def test_fsdp_holds_a_share_and_two_layers_whole() -> None:
    assert shared("fsdp", 4) == {
        "weights": 250,
        "adapters": 20,
        "gradients": 20,
        "optimizer": 40,
        "activations": 300,
        # two layers with their adapters and gradients, and what lies outside the layers
        "gathered": 2 * (90 + 16) + 100,
    }


def test_scales_of_four_bits_are_not_shared_out() -> None:
    assert shared("fsdp", 4, FOUR_BITS)["weights"] == 800 // 4 + 200
    assert shared("fsdp", 4, FOUR_BITS)["gathered"] == 2 * (90 - 20 + 16) + 100


def test_offload_leaves_what_is_at_work() -> None:
    assert shared("fsdp-offload", 1) == {"weights": 0, "activations": 300, "gathered": 2 * (90 + 16) + 100}


def test_the_allowance_grows_with_activations_and_gpus() -> None:
    assert allowance(0, 1) == CONTEXT
    assert allowance(1000, 2) == CONTEXT + NCCL + 100


@pytest.mark.parametrize(
    ("strategy", "n", "moved"), [("ddp", 4, 0), ("fsdp", 4, 2 * 750), ("fsdp-offload", 1, 2000)]
)
def test_only_shards_cross_the_links(strategy: str, n: int, moved: float) -> None:
    assert moved_bytes(strategy, HELD, 1000, n, passes=2) == moved
