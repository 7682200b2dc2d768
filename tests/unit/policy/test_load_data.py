"""The prompts of a run, before there is a model."""

from __future__ import annotations

import json
from pathlib import Path

from policy.recipe import load_data
from rlhf.config.load import load_config
from rlhf.config.policy import PolicyConfig
from rlhf.models.chat import Chat


def test_prompts_that_the_template_refuses_are_dropped_and_counted(
    policy_config: Path, refusing_base: Path, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.jsonl"
    asked = [f"Question {number}, of {'war' if number % 4 == 0 else 'tea'}?" for number in range(40)]
    file.write_text("".join(json.dumps({"prompt": one}) + "\n" for one in asked))
    config = load_config(policy_config, PolicyConfig, [f"data.prompts.0.path={file}"])
    data = load_data(config, Chat.load(refusing_base))
    reason = "refused by the chat template: No war"
    assert data.drops.reasons == {reason: 10}
    assert (data.drops.read, data.drops.kept) == (40, 30)
    assert not any("war" in prompt.messages[0].content for prompt in (*data.training, *data.held_out))
