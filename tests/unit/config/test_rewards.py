"""`reward`, `reward_shaping` and `held_out_reward`: what may stand there, and what the log calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf.config.load import load_config
from rlhf.config.policy import PolicyConfig
from rlhf.config.rewards import RewardSource, ShapingConfig, names_of
from rlhf.core.errors import ConfigError


def load(folder: Path, loaded: str, *words: str) -> PolicyConfig:
    (folder / "p.yaml").write_text(f"output: runs/x\ndata: {{prompts: [{{path: demo}}]}}\n{loaded}")
    return load_config(folder / "p.yaml", PolicyConfig, words)


def test_a_folder_is_the_common_case_and_stays_one_word(tmp_path: Path) -> None:
    config = load(tmp_path, "reward: a/final\n", "reward=b/final")
    assert config.reward == [RewardSource(adapter="b/final")]
    assert config.model_dump(mode="json")["reward"] == "b/final"
    assert (config.reward[0].kind, config.reward[0].place, config.reward[0].weight) == (
        "adapter",
        "b/final",
        1.0,
    )
    assert config.held_out_reward is None and config.reward_shaping == ShapingConfig()


def test_one_source_and_a_list_of_sources(tmp_path: Path) -> None:
    first = load(tmp_path, "reward: {function: gold, weight: 2}\n")
    assert [source.words() for source in first.reward] == ["function gold"]
    several = load(
        tmp_path,
        "reward: [a/final, {classifier: b, label: good, weight: -0.5}]\nheld_out_reward: c/final\n",
        "reward.1.weight=0.25",
    )
    assert [(source.kind, source.weight) for source in several.reward] == [
        ("adapter", 1.0),
        ("classifier", 0.25),
    ]
    assert several.held_out_reward is not None
    assert (several.held_out_reward.place, several.held_out_reward.every) == ("c/final", 1)
    assert several.reward_folders == [("reward", "a/final"), ("held_out_reward", "c/final")]


@pytest.mark.parametrize(
    "loaded",
    [
        "reward: a\n",
        "reward: {adapter: a, weight: 2}\n",
        "reward: [a, {server: 'https://host:1/below', timeout: 3}]\nheld_out_reward: {function: gold, "
        "every: 5}\n",
        "reward: a\nreward_shaping: {normalise: running, clip: [-1, 1], length_penalty: {per_token: 0.1}, "
        "missing: drop}\n",
    ],
)
def test_the_resolved_config_means_the_same_again(tmp_path: Path, loaded: str) -> None:
    config = load(tmp_path, loaded)
    again = yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))
    assert PolicyConfig.model_validate(again) == config


def names(*loaded: dict[str, Any]) -> list[str]:
    return names_of([RewardSource.model_validate(item) for item in loaded])


def test_what_the_log_calls_each() -> None:
    assert names({"adapter": "a"}, {"adapter": "b"}, {"adapter": "c", "name": "help"}) == [
        "adapter",
        "adapter_2",
        "help",
    ]
    assert names({"function": "x.py:brevity"}, {"function": "gold"}, {"classifier": "c"}) == [
        "brevity",
        "gold",
        "classifier",
    ]
    # reward/mean is in the log already.
    assert names({"function": "x.py:mean"}) == ["mean_2"]


@pytest.mark.parametrize(
    ("loaded", "message"),
    [
        ("", "'reward'"),
        (
            "reward: 3\n",
            "reward.0: .*3\n.*adapter, classifier, server, function",
        ),
        ("reward: gold\n", "reward: .*'gold'.*{function: gold}"),
        ("reward: [a, 'b.py:f']\n", "{function: b.py:f}"),
        ("reward: a\nheld_out_reward: 'http://h:1'\n", "{server: 'http://h:1'}"),
        ("reward: []\n", r"reward: .*\[\]"),
        ("reward: {adaptor: a}\n", "'reward.0.adaptor'.* 'adapter'"),
        ("reward: {adapter: a, server: 'http://h:1'}\n", "reward.0: .*adapter and server"),
        ("reward: {weight: 1}\n", "reward.0: "),
        ("reward: {adapter: a, label: b}\n", "label .*classifier.* adapter"),
        ("reward: {adapter: a, reasoning: strip}\n", "reasoning .*classifier.* adapter"),
        ("reward: {function: gold, timeout: 3}\n", "timeout .*server.* function"),
        (
            "reward: {server: 'localhost:8800'}\n",
            "http://HOST:PORT.*RLHF_REWARD_TOKEN",
        ),
        ("reward: {server: 'http://token@host:1'}\n", "http://HOST:PORT"),
        ("reward: {function: brevity}\n", "FILE.py:NAME, MODULE:NAME or gold"),
        ("reward: {adapter: a, weight: much}\n", 'reward.0.weight: .*"much"'),
        ("reward: [a, {adapter: b, name: adapter}]\n", "'adapter'"),
        ("reward: {adapter: a, name: std}\n", "'std'"),
        ("reward: {adapter: a, name: 'a b'}\n", 'reward.0.name: .*"a b"'),
        ("reward: [a, b]\nheld_out_reward: b\n", "held_out_reward b .*`reward`"),
        ("reward: a\nheld_out_reward: {adapter: b, weight: 2}\n", "'held_out_reward.weight'"),
        ("reward: a\nheld_out_reward: {adapter: b, every: 0}\n", "held_out_reward.every: "),
        (
            "reward: a\nreward_shaping: {clip: [1, 1]}\n",
            r"clip: .*\[1.0, 1.0\].*\[lowest, highest\]",
        ),
        ("reward: a\nreward_shaping: {normalise: bach}\n", "reward_shaping.normalise=batch"),
        ("reward: a\nreward_shaping: {missing: zero}\n", "'error', 'drop'"),
        ("reward: a\nreward_shaping: {length_penalty: 0.1}\n", "per_token, above"),
        ("reward: a\nreward_shaping: {length_penalty: {per_token: -1}}\n", "per_token: .*-1"),
    ],
)
def test_what_cannot_be(tmp_path: Path, loaded: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, loaded)
    assert caught.value.exit_code == 2
