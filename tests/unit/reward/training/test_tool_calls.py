"""Tool calls as responses: training and evaluation read them as the chat template renders them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers_of_kinds import KINDS, make_tokenizer, write_base

from reward.evaluation.benchmarks.benchmark import evaluate
from reward.training.data import load_chat, load_data
from rlhf.config.reward import RewardConfig
from rlhf.core.records import Conversation
from rlhf.inspection.measure import inspect_reward
from rlhf.models.chat import Chat

CHATML = KINDS["chatml"]["template"]
WITH_CALLS = CHATML.replace(
    "{{ m['content'] }}",
    "{{ m.get('reasoning_content') or '' }}{{ m['content'] }}"
    "{% for c in m.get('tool_calls') or [] %}{{ c.function | tojson }}{% endfor %}",
)


def call(argument: int) -> list[dict[str, Any]]:
    function = {"name": "add", "arguments": json.dumps({"x": argument})}
    return [
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]}
    ]


def config_of(folder: Path, template: str, **data: Any) -> RewardConfig:
    base = write_base(folder / "base", make_tokenizer(**{**KINDS["chatml"], "template": template}))
    rows = [{"prompt": f"Add {n}.", "chosen": call(n), "rejected": call(n + 1)} for n in range(8)]
    file = folder / "pairs.jsonl"
    file.write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "chosen": "0", "rejected": "1"}])
    )
    return RewardConfig.model_validate(
        {
            "output": "unused",
            "model": {"base": str(base), "max_length": 400},
            "attributes": ["helpfulness"],
            "data": {"preferences": [{"path": str(file)}], "validation_share": 0, **data},
            "stages": [{"name": "pairs", "preference_weight": 1}],
        }
    )


def test_both_calls_reach_the_ids_that_are_trained_on(tmp_path: Path) -> None:
    config = config_of(tmp_path, WITH_CALLS)
    chat = load_chat(config)
    data = load_data(config, chat)
    assert data.drops.reasons == {}
    texts = [chat.tokenizer.decode(branch) for item in data.training for branch in item.tree.branches]
    # A branch holds what follows the beginning that both responses share.
    assert all(f"{n}" in text for n, text in enumerate(texts[:16:2]))
    assert all(f"{n + 1}" in text for n, text in enumerate(texts[1:16:2]))
    assert inspect_reward(config)["targets"]["pairs"] == 9


def test_calls_that_the_template_does_not_render_are_dropped_and_counted(tmp_path: Path) -> None:
    config = config_of(tmp_path, CHATML)
    data = load_data(config, load_chat(config))
    ((reason, count),) = data.drops.reasons.items()
    assert "tool_calls" in reason
    assert count == 8
    assert len(data.training) == 1


class IdScorer:
    """Rewards a conversation by a hash of its ids, so that equal rewards are equal ids."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat

    def score(self, conversations: Sequence[Conversation]) -> list[Any]:
        return [
            Score(hash(tuple(self.chat.conversation_ids(conversation))) % 9973 / 9973)
            for conversation in conversations
        ]


class Score:
    def __init__(self, reward: float) -> None:
        self.reward = reward
        self.attributes: Mapping[str, float] = {}


def test_held_out_calls_are_judged_as_they_are_rendered(tmp_path: Path) -> None:
    config = config_of(tmp_path, WITH_CALLS, test_share=0.5)
    chat = load_chat(config)
    held = load_data(config, chat).held_out
    assert held
    _, rows = evaluate(held, IdScorer(chat))
    expected = [
        IdScorer(chat).score([(*pair.prompt, message)])[0].reward
        for pair in held
        for message in pair.messages
    ]
    assert [row[name] for row in rows for name in ("reward_chosen", "reward_rejected")] == pytest.approx(
        expected
    )
    assert all(row["reward_chosen"] != row["reward_rejected"] for row in rows)
