"""The largest batch that a plan expects, against the batches of the real packer."""

from __future__ import annotations

import random
from typing import Any

import pytest
from transformers import AutoConfig

from policy.update.forward import pack_groups
from reward.training.batches import Item, batches
from rlhf.config.policy import PolicyConfig
from rlhf.config.reward import RewardConfig
from rlhf.core.records import Rollout
from rlhf.kernels import packing
from rlhf.kernels.packed_batch import PackedBatch
from rlhf.kernels.packing import GPU_GRAIN, Tree
from rlhf.plan.memory.passes import UpdateRow
from rlhf.plan.memory.shapes import load_shape, reason_by_shape
from rlhf.plan.memory.trace import trace
from rlhf.plan.request import as_packed, row_of

MOST, NEW, PROMPT, SAMPLES = 300, 150, 100, 3
BUDGETS = (256, 1000, 1536)
"""Below an item, between two multiples of the grain, and a multiple of it above an item."""


@pytest.fixture(autouse=True)
def gpu_grain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of the length they have on a GPU."""
    monkeypatch.setattr(packing, "CPU_GRAIN", GPU_GRAIN)


def reward(budget: int, *, packing: bool) -> RewardConfig:
    return RewardConfig.model_validate(
        {
            "output": "unused",
            "model": {"max_length": MOST, "packing": packing},
            "data": {"preferences": [{"path": "demo", "format": "helpsteer2-preference"}]},
            "stages": [{"name": "pairs", "preference_weight": 1}],
            "tokens_per_batch": budget,
        }
    )


def policy(budget: int, *, packing: bool) -> PolicyConfig:
    return PolicyConfig.model_validate(
        {
            "output": "unused",
            "model": {"max_length": MOST, "packing": packing},
            "reward": "r/final",
            "data": {"prompts": [{"path": "demo"}], "max_prompt_tokens": PROMPT},
            "rollouts": {"samples_per_prompt": SAMPLES, "max_new_tokens": NEW},
            "tokens_per_batch": budget,
        }
    )


def reward_batches(budget: int, shortest: int, *, packing: bool) -> list[PackedBatch]:
    """Pairs of random length; the first pair is the longest that a run takes, and shares nothing."""
    draw = random.Random(budget)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(draw.randrange(10, 1000) for _ in range(length))

    lengths = [(MOST, MOST), *((draw.randint(shortest, MOST), draw.randint(1, MOST)) for _ in range(40))]
    items = [Item(Tree((), (ids(a), ids(b))), ((None,), (None,)), 1) for a, b in lengths]
    return [batch.packed for batch in batches(items, budget, pad_id=0, one_per_row=not packing)]


def policy_batches(budget: int, shortest: int, *, packing: bool) -> list[PackedBatch]:
    draw = random.Random(budget)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(draw.randrange(10, 1000) for _ in range(length))

    lengths = [(PROMPT, NEW), *((draw.randint(1, PROMPT), draw.randint(shortest, NEW)) for _ in range(20))]
    groups = []
    for prompt, new in lengths:
        prompt_ids = ids(prompt)
        groups.append([Rollout(prompt_ids, ids(new), (), True, "") for _ in range(SAMPLES)])
    return [batch.packed for batch in pack_groups(groups, budget, 0, one_per_row=not packing)]


KINDS: dict[str, tuple[Any, Any]] = {"reward": (reward, reward_batches), "policy": (policy, policy_batches)}


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "one-per-row"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_batch_is_larger_than_planned_and_the_longest_item_fills_it(
    kind: str, packed: bool, budget: int
) -> None:
    config, make = KINDS[kind]
    row: UpdateRow = row_of(config(budget, packing=packed))
    for shortest in (1, 100):
        made = make(budget, shortest, packing=packed)
        cells = [batch.ids_RT.numel() for batch in made]
        assert max(cells) <= row.tokens
        assert all(batch.ids_RT.shape[1] % GPU_GRAIN == 0 for batch in made)
    if budget == min(BUDGETS):  # the longest item is a batch by itself
        assert max(cells) == row.tokens
        longest = max(made, key=lambda batch: batch.ids_RT.numel())
        assert (len(longest.ids_RT), longest.one_per_row) == (row.rows, not packed)


def test_a_prompt_is_planned_once_a_group_or_with_each_answer() -> None:
    packed, unpacked = (row_of(policy(256, packing=flag)) for flag in (True, False))
    assert packed.tokens == 640  # 100 + 3 x 151 = 553, to 128
    assert (unpacked.rows, unpacked.tokens) == (SAMPLES, SAMPLES * 256)  # 250 each, to 128
    assert unpacked.logprob_tokens == SAMPLES * NEW


def test_rows_of_one_sequence_are_traced_without_a_mask_between_them() -> None:
    """Attention costs T^2 a row: three rows of 256 tokens cost less than one of 768."""
    shape = load_shape("embedded")
    alone = trace(shape, row_of(policy(256, packing=False)))
    together = trace(shape, row_of(policy(768, packing=True)))
    assert alone.flops["update"] < together.flops["update"]


@pytest.mark.parametrize(
    ("kind", "settings", "packs"),
    [
        ("llama", {}, True),
        ("mistral", {"sliding_window": 8}, True),
        ("lfm2", {"layer_types": ["conv", "full_attention"] * 4}, False),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, False),
    ],
)
def test_a_base_that_cannot_be_packed_is_planned_with_one_sequence_per_row(
    kind: str, settings: dict[str, Any], packs: bool
) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 8}
    shape = AutoConfig.for_model(kind, **sizes, intermediate_size=128, vocab_size=300, **settings)
    config, reason = as_packed(policy(256, packing=True), shape)
    assert config.model.packing is packs
    assert (reason is None) is packs
    assert reason == reason_by_shape(shape)
