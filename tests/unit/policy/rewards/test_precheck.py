"""Which checks the gold score can evaluate, known before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from policy.rewards.precheck import check_sources
from rlhf.config.policy import PolicyConfig
from rlhf.core.errors import DataError
from rlhf.core.records import Message, Prompt
from rlhf.data.checks import CONSTRAINTS
from rlhf.data.load import load_prompts

MESSAGES = (Message("user", "Tell me about tea."),)


def config(tmp_path: Path) -> PolicyConfig:
    settings: dict[str, Any] = {
        "output": tmp_path,
        "reward": {"function": "gold"},
        "data": {"prompts": [{"path": "demo", "limit": 20}]},
    }
    return PolicyConfig.model_validate(settings)


def test_the_demos_prompts_have_checks_of_known_families(tmp_path: Path) -> None:
    settings = config(tmp_path)
    prompts, _ = load_prompts(settings.data.prompts)
    assert {prompt.check["family"] for prompt in prompts if prompt.check} <= CONSTRAINTS.keys()
    check_sources(settings, None, prompts)  # type: ignore[arg-type]


def test_a_known_check_may_also_be_a_column_for_reward_functions(tmp_path: Path) -> None:
    check = {"family": "words", "limit": 7}
    check_sources(config(tmp_path), None, [Prompt(MESSAGES, check=check, columns={"check": check})])  # type: ignore[arg-type]


@pytest.mark.parametrize("custom", [{"family": "sum"}, "4", {"answer": 4}])
def test_a_custom_check_is_refused(tmp_path: Path, custom: Any) -> None:
    with pytest.raises(DataError) as caught:
        check_sources(config(tmp_path), None, [Prompt(MESSAGES, columns={"check": custom})])  # type: ignore[arg-type]
    assert all(family in str(caught.value.allowed) for family in CONSTRAINTS)
    assert "function" in str(caught.value.fix)
