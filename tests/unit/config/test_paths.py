"""Every key that holds a path takes `~` and `$VAR`, and the run's own config.yaml then holds the whole
path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf.config.load import load_config
from rlhf.config.policy import PolicyConfig
from rlhf.config.reward import RewardConfig
from rlhf.config.search import SearchConfig
from rlhf.core.errors import ConfigError

REWARD = """
output: ~/run
model: {base: ~/base}
data: {ratings: [{path: ~/rows.jsonl}], preferences: [{path: $PLACE/pairs.jsonl}]}
start: ~/start
benchmark: ~/bench.jsonl
stages: [{name: a, regression_weight: 1}]
"""
POLICY = """
output: $PLACE/run
model: {base: "${PLACE}/base"}
start: ~/start
reward:
- {adapter: ~/reward}
- {classifier: ~/classifier}
- {function: "~/mine.py:f"}
- {ensemble: {adapters: [~/one, ~/two]}}
held_out_reward: ~/watcher
data: {prompts: [{path: ~/prompts.jsonl}]}
rollouts: {engine: servers, servers: ["http://a:1"], adapter_folder: ~/shared}
"""
SEARCH = """
command: train-reward
config: ~/reward.yaml
output: ~/search
parameters: {adapter.rank: {choices: [4, 8]}}
objective: {metric: overall}
"""


@pytest.mark.parametrize(
    ("schema", "text", "paths"),
    [(RewardConfig, REWARD, 6), (PolicyConfig, POLICY, 10), (SearchConfig, SEARCH, 2)],
)
def test_every_path_is_expanded_when_the_config_is_read(
    schema: Any, text: str, paths: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/of/mine")
    monkeypatch.setenv("PLACE", "/a/place")
    (tmp_path / "config.yaml").write_text(text)
    stored = yaml.safe_dump(load_config(tmp_path / "config.yaml", schema).model_dump(mode="json"))
    assert "~" not in stored and "$PLACE" not in stored
    assert stored.count("/home/of/mine/") + stored.count("/a/place/") == text.count("~/") + text.count(
        "PLACE"
    )


def test_a_word_on_the_command_line_and_the_output_are_expanded_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/of/mine")
    (tmp_path / "config.yaml").write_text(REWARD.replace("$PLACE", "~"))
    loaded = load_config(tmp_path / "config.yaml", RewardConfig, ["model.base=~/other"], Path("~/elsewhere"))
    assert (loaded.model.base, loaded.output) == ("/home/of/mine/other", Path("/home/of/mine/elsewhere"))


def test_a_variable_that_is_not_set_names_its_key_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOT_SET_AT_ALL", raising=False)
    file = tmp_path / "config.yaml"
    file.write_text(SEARCH.replace("~/search", "$NOT_SET_AT_ALL/search"))
    with pytest.raises(ConfigError) as caught:
        load_config(file, SearchConfig)
    assert f"{file}:4: output:" in caught.value.found and "NOT_SET_AT_ALL" in caught.value.found


@pytest.mark.parametrize("seed", [-1, 2**32])
@pytest.mark.parametrize(("schema", "text"), [(RewardConfig, REWARD), (SearchConfig, SEARCH)])
def test_seeds_that_numpy_or_torch_would_refuse(schema: Any, text: str, seed: int, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text.replace("$PLACE", "~"))
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "config.yaml", schema, [f"seed={seed}"])
    assert str(seed) in caught.value.found and str(2**32 - 1) in caught.value.allowed


@pytest.mark.parametrize(
    ("rank", "engine", "fits"), [(512, "vllm", True), (513, "vllm", False), (513, "transformers", True)]
)
def test_an_adapter_that_vllm_cannot_take(rank: int, engine: str, fits: bool, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("output: x\nreward: y\ndata: {prompts: [{path: demo}]}\n")
    words = [f"adapter.rank={rank}", f"rollouts.engine={engine}"]
    if fits:
        load_config(tmp_path / "config.yaml", PolicyConfig, words)
        return
    with pytest.raises(ConfigError, match="512"):
        load_config(tmp_path / "config.yaml", PolicyConfig, words)
