"""The prompts of a run, before there is a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from policy.training.prompt_data import load_data
from rlhf.config.load import load_config
from rlhf.config.policy import PolicyConfig
from rlhf.core.errors import DataError
from rlhf.models.chat import Chat


def test_prompts_that_the_template_refuses_are_dropped_and_counted(
    policy_config: Path, refusing_base: Path, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.jsonl"
    asked = [f"Question {number}, of {'war' if number % 4 == 0 else 'tea'}?" for number in range(40)]
    file.write_text("".join(json.dumps({"prompt": item}) + "\n" for item in asked))
    config = load_config(policy_config, PolicyConfig, [f"data.prompts.0.path={file}"])
    data = load_data(config, Chat.load(refusing_base))
    reason = "refused by the chat template: No war"
    assert data.drops.reasons == {reason: 10}
    assert data.drops.examples == {reason: [f"{file}:1", f"{file}:5", f"{file}:9"]}
    assert (data.drops.read, data.drops.kept) == (40, 30)
    assert not any("war" in prompt.messages[0].content for prompt in (*data.training, *data.held_out))


def prompts_file(folder: Path, count: int) -> Path:
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"Question {n}?"}) + "\n" for n in range(count)))
    return file


def test_only_what_the_evaluation_uses_is_held_out_whatever_the_seed(
    policy_config: Path, tiny_base: Path, tmp_path: Path
) -> None:
    source = f"data.prompts.0.path={prompts_file(tmp_path, 50)}"
    chat = Chat.load(tiny_base)

    def held(*words: str) -> list[str]:
        data = load_data(load_config(policy_config, PolicyConfig, [source, *words]), chat)
        assert len(data.training) + len(data.held_out) == 50
        assert not {p.messages for p in data.training} & {p.messages for p in data.held_out}
        return [prompt.messages[0].content for prompt in data.held_out]

    three = held("evaluation.prompts=3")
    assert len(three) == 3 == len(set(three))
    assert held("evaluation.prompts=3", "seed=7") == three
    assert held("evaluation.prompts=5")[:3] == three  # a larger evaluation adds to a smaller one
    assert len(held("evaluation.prompts=64")) == 10  # never more than a fifth


def test_a_draw_of_prompts_is_the_same_whatever_the_seed(
    policy_config: Path, tiny_base: Path, tmp_path: Path
) -> None:
    words = [f"data.prompts=[{{path: {prompts_file(tmp_path, 50)}, limit: 20}}]", "evaluation.prompts=4"]
    chat = Chat.load(tiny_base)
    first, other = (
        load_data(load_config(policy_config, PolicyConfig, [*words, f"seed={seed}"]), chat) for seed in (0, 7)
    )
    assert (len(first.held_out), len(first.training)) == (4, 16)
    assert (first.held_out, first.training) == (other.held_out, other.training)


def test_a_single_prompt_cannot_be_split(policy_config: Path, tiny_base: Path, tmp_path: Path) -> None:
    words = [f"data.prompts.0.path={prompts_file(tmp_path, 1)}"]
    with pytest.raises(DataError) as caught:
        load_data(load_config(policy_config, PolicyConfig, words), Chat.load(tiny_base))
    assert caught.value.exit_code == 2
