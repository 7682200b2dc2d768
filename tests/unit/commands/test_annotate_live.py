"""`rlhf annotate serve --policy`: responses of two adapters, or of one and its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf.annotate.store import Store
from rlhf.commands.annotate_live import live_pairs
from rlhf.core.errors import ConfigError, ModelError
from rlhf.models.chat import Chat
from tests.unit.policy.test_shared_base import write_policy


@pytest.fixture(scope="module")
def policies(tiny_base: Path, tiny_chat: Chat, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("policies")
    return [
        str(write_policy(folder / name / "final", tiny_base, tiny_chat, rank=2, alpha=8, seed=seed))
        for seed, name in enumerate("ab", 2)
    ]


SAMPLING: dict[str, Any] = {"max_new_tokens": 8, "temperature": 0.0, "seed": 0}


def test_a_policy_beside_its_base_and_two_policies(
    policies: list[str], tiny_base: Path, tmp_path: Path
) -> None:
    """Greedy, so that the pair of two policies has the first responses of the pairs with the base."""
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "Tell me about tea."}\n')
    result = {}
    for place, names in enumerate((policies[:1], policies[1:], policies)):
        store = Store(tmp_path / f"{place}.db")
        assert live_pairs(store, names, str(file), **SAMPLING).add_next()
        (task,) = store.tasks().values()
        result[place] = (task.response_1, task.response_2)
    assert result[2] == (result[0][0], result[1][0])
    assert result[0][1] == result[1][1], "the base's answer"
    assert len({*result[0], *result[1]}) == 3


def test_what_cannot_be_compared_live(policies: list[str], tiny_base: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "Tell me about tea."}\n')
    for names, prompts, error in (
        (policies, None, ConfigError),
        ([policies[0], policies[0]], str(file), ConfigError),
        ([*policies, str(tiny_base)], str(file), ConfigError),
        ([str(tiny_base)], str(file), ModelError),
    ):
        with pytest.raises(error):
            live_pairs(Store(tmp_path / "a.db"), names, prompts, **SAMPLING)
