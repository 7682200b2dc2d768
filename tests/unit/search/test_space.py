"""The search space: validation of the searched keys, and the overrides of a trial."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from rlhf.config.load import load_config
from rlhf.config.reward import RewardConfig
from rlhf.config.search import SearchConfig
from rlhf.core.errors import ConfigError
from rlhf.search.space import Space, base_config, read_space, words_of

Write = Callable[..., Path]


@pytest.fixture
def space(write_search: Write) -> Callable[..., Space]:
    def read(parameters: dict[str, Any], **values: Any) -> Space:
        file = write_search(parameters=parameters, **values)
        search = load_config(file, SearchConfig)
        base_config(search)
        return read_space(search, file)

    return read


def test_the_schema_decides_which_keys_are_whole_numbers(space: Callable[..., Space]) -> None:
    searched = space(
        {
            "adapter.rank": {"low": 2, "high": 8, "step": 2},
            "stages.0.max_steps": {"low": 10, "high": 40, "log": True},
            "stages.0.regression_weight": {"low": 0, "high": 2},
            "stages.0.preference_loss": {"choices": ["scaled", "margin"]},
            "attributes": {"choices": [["helpfulness"], ["helpfulness", "verbosity"]]},
        }
    )
    trial = optuna.create_study().ask()
    searched.propose(trial)
    assert trial.distributions == {
        "adapter.rank": IntDistribution(2, 8, step=2),
        "stages.0.max_steps": IntDistribution(10, 40, log=True),
        "stages.0.regression_weight": FloatDistribution(0.0, 2.0),
        "stages.0.preference_loss": CategoricalDistribution(['"scaled"', '"margin"']),
        "attributes": CategoricalDistribution(['["helpfulness"]', '["helpfulness", "verbosity"]']),
    }


def test_the_words_of_a_trial_set_just_its_values(space: Callable[..., Space], tmp_path: Path) -> None:
    searched = space(
        {
            "stages.0.optimizer.learning_rate": {"low": 1e-5, "high": 1e-4},
            "attributes": {"choices": [["helpfulness"], ["helpfulness", "verbosity"]]},
            "benchmark": {"choices": [None, "1.5", "a b"]},
        }
    )
    for number in range(12):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=number))
        trial = study.ask()
        searched.propose(trial)
        values = searched.values(trial.params)
        config = load_config(tmp_path / "base.yaml", RewardConfig, words_of(values), tmp_path)
        assert config.stages[0].optimizer.learning_rate == values["stages.0.optimizer.learning_rate"]
        assert config.attributes == values["attributes"] and isinstance(config.attributes, list)
        assert config.benchmark == values["benchmark"]


@pytest.mark.parametrize(
    ("key", "values", "wrong", "allowed"),
    [
        ("adapter.rnk", {"low": 1, "high": 4}, "adapter.rnk", "rank"),
        ("stages.1.epochs", {"low": 1, "high": 4}, "stages", ""),
        ("adapter.rank", {"low": 0, "high": 4}, "adapter.rank: found 0.0", "a whole number of at least 1"),
        ("adapter.rank", {"low": 1.5, "high": 4}, "adapter.rank: found 1.5", "a whole number"),
        ("adapter.rank", {"low": 1, "high": 4, "step": 0.5}, "step 0.5", "a whole step"),
        ("adapter.dropout", {"low": 0, "high": 2}, "adapter.dropout: found 2.0", "a number from 0 to 1"),
        ("stages.0.preference_loss", {"choices": ["scaled", "marginal"]}, '"marginal"', "one of"),
        ("stages.0.preference_loss", {"low": 1, "high": 2}, "stages.0.preference_loss: found 1.0", ""),
        ("data.ratings", {"choices": [[]]}, "data.ratings", ""),
    ],
)
def test_a_key_or_value_the_config_does_not_allow(
    space: Callable[..., Space], key: str, values: dict[str, Any], wrong: str, allowed: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        space({key: values})
    assert f"search.yaml: parameters: {key}" in raised.value.found
    assert wrong in raised.value.found
    assert allowed in raised.value.allowed
    assert "command line" not in raised.value.found


def test_a_bad_override_or_base_config(space: Callable[..., Space]) -> None:
    with pytest.raises(ConfigError) as raised:
        space({"adapter.rank": {"low": 1, "high": 4}}, overrides=["adpter.rank=3"])
    assert raised.value.found.startswith("overrides: ")
    assert "adpter" in raised.value.found
    with pytest.raises(ConfigError) as raised:
        space({"adapter.rank": {"low": 1, "high": 4}}, config="nowhere.yaml")
    assert "nowhere.yaml" in raised.value.found


def test_the_shipped_searches_fit_their_configs() -> None:
    files = sorted(Path("configs/search").glob("*.yaml"))
    assert len(files) == 2
    for file in files:
        search = load_config(file, SearchConfig)
        assert len(read_space(search, file).parameters) == len(yaml.safe_load(file.read_text())["parameters"])
