"""What is equal to the model is equal to us: prompts and answers are compared by their ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers_of_kinds import KINDS, make_tokenizer, write_base

from policy.training.prompt_data import load_data as load_prompt_data
from reward.training.data import load_chat, load_data, load_records
from rlhf.config.policy import PolicyConfig
from rlhf.config.reward import RewardConfig
from rlhf.inspection.measure import inspect_policy, inspect_reward
from rlhf.models.chat.control_tokens import SPELLED
from rlhf.models.chat.same_prompts import SAME_IDS, SAME_PROMPT, SamePrompts

TRIM_AND_STRIP = KINDS["r1, turns not special"]["template"].replace(
    "<|User|>{{ m['content'] }}", "<|User|>{{ m['content'] | trim }}"
)


@pytest.fixture
def stripping_base(tmp_path: Path) -> Path:
    """Its template trims questions and leaves out what an answer thinks."""
    tokenizer = make_tokenizer(**{**KINDS["r1, turns not special"], "template": TRIM_AND_STRIP})
    return write_base(tmp_path / "base", tokenizer)


def reward_config(base: Path, rows: list[dict[str, Any]], **data: Any) -> RewardConfig:
    file = base.parent / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {name: name for name in ("prompt", "chosen", "rejected")}
    return RewardConfig.model_validate(
        {
            "output": "unused",
            "model": {"base": str(base), "max_length": 400},
            "attributes": ["helpfulness"],
            "data": {"preferences": [{"path": str(file), "columns": columns}], **data},
            "stages": [{"name": "pairs", "preference_weight": 1}],
        }
    )


def test_pairs_of_equal_ids_are_dropped_and_counted(stripping_base: Path) -> None:
    rows = [
        {
            "prompt": f"Sum {n}?",
            "chosen": f"<think>{n}</think>{n}.",
            "rejected": f"<think>?</think>{n - n % 2}.",
        }
        for n in range(24)
    ]
    config = reward_config(stripping_base, rows, validation_share=0)
    data = load_data(config, load_chat(config))
    assert data.drops.reasons == {SAME_IDS: 12}
    assert len(data.training) == 12
    result = inspect_reward(config)
    assert result["dropped_later"][SAME_IDS]["count"] == 12
    assert result["targets"]["pairs"] == 12


@pytest.mark.parametrize("share", ["validation_share", "test_share"])
def test_prompts_of_equal_ids_are_on_one_side(stripping_base: Path, share: str) -> None:
    rows = [
        {"prompt": f"{before}Say {n}.{after}", "chosen": f"{n}", "rejected": "no"}
        for n in range(40)
        for before, after in (("", ""), ("", " "), (" ", ""), ("", "\n"))
    ]
    config = reward_config(stripping_base, rows, **{"validation_share": 0.0, share: 0.5})
    chat = load_chat(config)
    data = load_data(config, chat)

    trained = {tuple(item.tree.trunk) for item in data.training}
    held = [(*pair.prompt,) for pair in data.held_out]
    assert len(data.held_out) % 4 == 0
    assert 0 < len(data.held_out) < len(rows)
    for ids in chat.prompts_ids(held):
        assert isinstance(ids, list)
        assert not any(trunk[: len(ids) - 2] == tuple(ids[:-2]) for trunk in trained)


def test_a_prompt_of_the_benchmark_is_known_by_its_ids(stripping_base: Path, tmp_path: Path) -> None:
    benchmark = tmp_path / "benchmark.jsonl"
    benchmark.write_text(
        json.dumps({"prompt": "Say 3.", "chosen": "3", "rejected": "4", "subset": "s"}) + "\n"
    )
    rows = [{"prompt": f"Say {n}. ", "chosen": f"{n}", "rejected": "no"} for n in range(6)]
    config = reward_config(stripping_base, rows, validation_share=0)
    config = config.model_copy(update={"benchmark": str(benchmark)})
    preferences, _, drops = load_records(config, SamePrompts(load_chat(config)))
    assert [pair.prompt[0].content for pair in preferences] == [f"Say {n}. " for n in (0, 1, 2, 4, 5)]
    assert drops.reasons.total() == 1


def test_rows_that_spell_control_tokens_are_counted(stripping_base: Path) -> None:
    rows = [
        {"prompt": f"Say {n}.", "chosen": f"{n}<|eos|>" if n % 3 else "1", "rejected": "no"} for n in range(9)
    ]
    config = reward_config(stripping_base, rows, validation_share=0)
    assert load_data(config, load_chat(config)).drops.notes[SPELLED] == 6
    assert inspect_reward(config)["notes"][SPELLED] == 6


def test_a_policy_learns_each_prompt_once(stripping_base: Path) -> None:
    file = stripping_base.parent / "prompts.jsonl"
    file.write_text(
        "".join(
            json.dumps({"prompt": f"Say {n}.{end}"}) + "\n"
            for n in range(20)
            for end in ("", " ", "<|User|>")
        )
    )
    config = PolicyConfig.model_validate(
        {
            "output": "unused",
            "reward": {"function": "gold"},
            "model": {"base": str(stripping_base), "max_length": 400},
            "data": {
                "prompts": [{"path": str(file), "columns": {"prompt": "prompt"}}],
                "max_prompt_tokens": 200,
            },
            "rollouts": {"max_new_tokens": 8},
        }
    )
    data = load_prompt_data(config, load_chat_of(config))
    assert data.drops.reasons[SAME_PROMPT] == 20
    assert data.drops.notes[SPELLED] == 20
    result = inspect_policy(config)
    assert result["dropped_later"][SAME_PROMPT]["count"] == 20
    assert result["targets"]["prompts"] == 40


def load_chat_of(config: PolicyConfig) -> Any:
    from rlhf.models.chat import Chat

    return Chat.of(config.model)
