"""A row of the paper's table by one line of a config."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from rlhf.config.load import load_config
from rlhf.config.recipes import RECIPES, RecipeName, fill
from rlhf.config.reward import RewardConfig
from rlhf.core.errors import ConfigError
from rlhf.core.records import HELPSTEER_ATTRIBUTES

FILE: dict[str, Any] = {
    "output": "runs/x",
    "data": {
        "ratings": [{"path": "demo", "format": "helpsteer2"}],
        "preferences": [{"path": "demo", "format": "helpsteer2-preference"}],
    },
    "stages": [
        {"name": "regression", "epochs": 3},
        {"name": "preference", "batch_size": 7, "optimizer": {"schedule": "cosine"}},
    ],
    "expo": {"factors": [1.25], "refine": None},
}

REGRESSION = ("regression", 1.0, 0.0, None)
ALL, ONE = list(HELPSTEER_ATTRIBUTES), ["helpfulness"]


def bt(loss: str) -> tuple[Any, ...]:
    return ("preference", 0.0, 1.0, loss)


# Stages as (name, weight of the regression, of the preferences, form of Bradley-Terry); outputs; ExPO or not.
EXPECTED: dict[str, tuple[list[tuple[Any, ...]], list[str], bool]] = {
    "regression-attributes": ([REGRESSION], ALL, False),
    "regression-helpfulness": ([REGRESSION], ONE, False),
    "bt-regular": ([bt("regular")], ONE, False),
    "bt-margin": ([bt("margin")], ONE, False),
    "bt-scaled": ([bt("scaled")], ONE, False),
    "helpfulness-bt-regular": ([REGRESSION, bt("regular")], ONE, False),
    "helpfulness-bt-margin": ([REGRESSION, bt("margin")], ONE, False),
    "helpfulness-bt-scaled": ([REGRESSION, bt("scaled")], ONE, False),
    "helpfulness-bt-scaled-expo": ([REGRESSION, bt("scaled")], ONE, True),
    "hybrid": ([("hybrid", 1.0, 1.0, "scaled")], ALL, False),
    "helpsteer3": ([REGRESSION, bt("scaled")], ONE, True),
}


def config(recipe: str, **more: Any) -> RewardConfig:
    return RewardConfig.model_validate({**FILE, "recipe": recipe, **more})


def test_the_names_of_the_schema_are_the_recipes() -> None:
    assert get_args(RecipeName) == tuple(RECIPES) == tuple(EXPECTED)


@pytest.mark.parametrize("recipe", EXPECTED)
def test_a_recipe_decides_losses_outputs_and_expo(recipe: str) -> None:
    stages, attributes, expo = EXPECTED[recipe]
    loaded = config(recipe)
    assert [
        (s.name, s.regression_weight, s.preference_weight, s.preference_loss if s.preference_weight else None)
        for s in loaded.stages
    ] == stages
    assert loaded.attributes == attributes
    assert (loaded.expo is not None) == expo
    if loaded.expo:
        assert (loaded.expo.weak, loaded.expo.strong) == ("regression", "preference")
        assert (loaded.expo.factors, loaded.expo.refine) == ([1.25], None)


def test_settings_come_from_the_file_and_then_from_nemo_aligner() -> None:
    first, second = config("helpfulness-bt-scaled").stages
    assert (first.epochs, first.batch_size, first.optimizer.learning_rate) == (3, 128, 2e-5)
    assert (second.epochs, second.batch_size, second.optimizer.learning_rate) == (1, 7, 1e-5)
    assert (first.optimizer.schedule, second.optimizer.schedule) == ("constant", "cosine")
    (hybrid,) = config("hybrid").stages
    assert hybrid.batch_size == 7  # without settings of its own, those of the preferences
    values = [*FILE["stages"], {"name": "hybrid", "batch_size": 9, "regression_weight": 0.25}]
    (hybrid,) = config("hybrid", stages=values).stages
    assert (hybrid.batch_size, hybrid.regression_weight, hybrid.preference_weight) == (9, 0.25, 1.0)


def test_a_file_with_a_hybrid_stage_alone_gives_its_settings_to_the_stages_of_a_recipe() -> None:
    values = {"name": "hybrid", "batch_size": 9, "regression_weight": 0.25, "preference_loss": "scaled"}
    values["optimizer"] = {"learning_rate": 1e-4}
    first, second = config("helpfulness-bt-margin", stages=[values]).stages
    assert (first.name, first.regression_weight, first.preference_weight) == ("regression", 1, 0)
    assert (second.name, second.preference_loss) == ("preference", "margin")
    assert {(stage.batch_size, stage.optimizer.learning_rate) for stage in (first, second)} == {(9, 1e-4)}


@pytest.mark.parametrize("recipe", EXPECTED)
def test_without_settings_there_are_nemo_aligners_with_rates_for_an_adapter(recipe: str) -> None:
    bare = {key: value for key, value in FILE.items() if key not in ("stages", "expo")}
    loaded = RewardConfig.model_validate({**bare, "recipe": recipe})
    batch = {"regression": 128, "preference": 64, "hybrid": 64}
    names = [stage[0] for stage in EXPECTED[recipe][0]]
    assert [stage.batch_size for stage in loaded.stages] == [batch[name] for name in names]
    # NeMo-Aligner's learning rates, 2e-6 and 1e-6, train all weights. An adapter takes ten times as much.
    rates = {"regression": 2e-5, "preference": 1e-5, "hybrid": 1e-5}
    assert [stage.optimizer.learning_rate for stage in loaded.stages] == [rates[name] for name in names]


@pytest.mark.parametrize("start", [None, "runs/helpfulness/final"])
@pytest.mark.parametrize("recipe", EXPECTED)
def test_a_resolved_config_is_the_same_config_again(recipe: str, start: str | None, tmp_path: Path) -> None:
    loaded = config(recipe, start=start)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(loaded.model_dump(mode="json"), sort_keys=False))
    assert load_config(file, RewardConfig) == loaded


@pytest.mark.parametrize("recipe", EXPECTED)
def test_filling_is_pure_and_idempotent(recipe: str) -> None:
    raw = {**copy.deepcopy(FILE), "recipe": recipe}
    before = copy.deepcopy(raw)
    once = fill(raw)
    assert raw == before
    assert fill(once) == once


def test_a_model_to_start_from_stands_for_the_regression() -> None:
    loaded = config("helpfulness-bt-scaled-expo", start="runs/helpfulness/final")
    assert [stage.name for stage in loaded.stages] == ["preference"]
    assert loaded.expo is not None and loaded.expo.weak == "start"
    assert [stage.name for stage in config("regression-helpfulness", start="x").stages] == ["regression"]


def test_without_a_recipe_nothing_is_filled() -> None:
    raw = {**FILE, "stages": [{"name": "custom", "regression_weight": 2.0}]}
    assert fill(raw) == raw


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"recipe": "bt-scale"}, ("recipe: ", "'bt-scaled'")),
        ({"attributes": ["helpfulness", "style"]}, ("attributes: ", "'bt-margin'", "['helpfulness']")),
        ({"stages": [{"name": "first"}]}, ("stages: ", "'first'")),
        ({"stages": [{"name": ["a"]}]}, ("stages: ", "['a']")),
        (
            {"stages": [{"name": "preference", "preference_loss": "scaled"}]},
            ("preference_loss: ", "'scaled'", "'bt-margin'", "'margin'"),
        ),
        (
            {"stages": [{"name": "preference", "regression_weight": 1}]},
            ("'preference'", "regression_weight 1"),
        ),
        ({"stages": [{"name": "preference", "preference_weight": 0}]}, ("preference_weight 0",)),
        ({"stages": [{"name": "preference"}, {"name": "preference"}]}, ("stages: ",)),
        ({"recipe": "helpfulness-bt-scaled-expo", "expo": {"weak": "x"}}, ("weak: ", "'x'")),
        ({"recipe": "helpfulness-bt-scaled-expo", "expo": 3}, ("expo: ", "3")),
        ({"stages": "all"}, ("stages: ", '"all"')),
    ],
)
def test_contradictions(more: dict[str, Any], expected: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "reward.yaml"
    file.write_text(yaml.safe_dump({**FILE, "recipe": "bt-margin", **more}))
    with pytest.raises(ConfigError) as caught:
        load_config(file, RewardConfig)
    assert all(part in caught.value.found for part in expected)
    assert caught.value.exit_code == 2


def test_a_mistake_is_found_where_it_stands_though_the_recipe_takes_another_place(tmp_path: Path) -> None:
    file = tmp_path / "reward.yaml"
    file.write_text(
        yaml.safe_dump({**FILE, "recipe": "bt-margin"}, sort_keys=False).replace(
            "batch_size: 7", "batch_size: 0"
        )
    )
    line = next(n for n, text in enumerate(file.read_text().splitlines(), 1) if "batch_size: 0" in text)
    with pytest.raises(ConfigError, match=f"{file}:{line}: stages.1.batch_size: "):
        load_config(file, RewardConfig)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"expo": {"weak": "one", "strong": "three"}}, ("expo: ", "'three'", "one, two")),
        (
            {"expo": {"weak": "two", "strong": "one"}},
            ("expo.weak ('two')", "expo.strong ('one')"),
        ),
        ({"expo": {"weak": "start", "strong": "one"}}, ("expo: ", "'start'")),
        ({"expo": {"weak": "one", "strong": "two", "factors": [0]}}, ("expo.factors.0: ",)),
        (
            {"stages": [{"name": "one", "regression_weight": 1, "centering_weight": 0.1}]},
            ("centering_weight",),
        ),
    ],
)
def test_expo_and_centring_that_cannot_be(
    more: dict[str, Any], expected: tuple[str, ...], tmp_path: Path
) -> None:
    stages = [{"name": "one", "regression_weight": 1}, {"name": "two", "preference_weight": 1}]
    file = tmp_path / "reward.yaml"
    file.write_text(yaml.safe_dump({**FILE, "stages": stages, "expo": None, **more}))
    with pytest.raises(ConfigError) as caught:
        load_config(file, RewardConfig)
    assert all(part in caught.value.found for part in expected)


CONFIGS = Path(__file__).parents[3] / "configs" / "reward"

# NeMo-Aligner at af2b3bd, docs/user-guide/steerlm.rst lines 225-285 and
# examples/nlp/gpt/conf/training_rm.yaml.
NEMO_ALIGNER = {
    "regression": {"max_steps": 317, "batch_size": 128, "learning_rate": 2e-6},
    "preference": {"max_steps": 105, "batch_size": 64, "learning_rate": 1e-6},  # 128 responses are 64 pairs
}
BOTH_STAGES = {
    "schedule": "constant",
    "warmup_steps": 10,
    "weight_decay": 0.1,
    "betas": (0.9, 0.98),
    "max_grad_norm": 1.0,
}


def test_the_70b_config_is_nemo_aligners_recipe_to_the_number() -> None:
    loaded = load_config(CONFIGS / "nemotron-70b.yaml", RewardConfig)
    assert loaded.recipe == "helpfulness-bt-scaled-expo"
    assert [stage.name for stage in loaded.stages] == list(NEMO_ALIGNER)
    for stage in loaded.stages:
        numbers = NEMO_ALIGNER[stage.name]
        assert (stage.max_steps, stage.batch_size) == (numbers["max_steps"], numbers["batch_size"])
        assert stage.optimizer.model_dump() == {**BOTH_STAGES, "learning_rate": numbers["learning_rate"]}
    assert (loaded.model.max_length, loaded.seed, loaded.validate_every, loaded.save_every) == (
        4096,
        1234,
        10,
        10,
    )
    assert loaded.head_start == 0
    # The updates are reached though a share of the prompts is held out.
    for stage, items in zip(loaded.stages, (20_324, 6_766), strict=True):
        assert int(stage.epochs * 0.94 * items / stage.batch_size) >= NEMO_ALIGNER[stage.name]["max_steps"]
    assert int(2 * 20_324 / 128) == 317 and int(6_766 / 64) == 105
    assert (
        loaded.expo is not None
        and loaded.expo.factors == [n / 10 for n in range(11, 21)]
        and loaded.expo.refine == 0.01
    )


@pytest.mark.parametrize("recipe", EXPECTED)
def test_every_row_of_the_table_is_one_word_for_the_70b_config(recipe: str) -> None:
    loaded = load_config(CONFIGS / "nemotron-70b.yaml", RewardConfig, [f"recipe={recipe}"])
    assert [stage.name for stage in loaded.stages] == [stage[0] for stage in EXPECTED[recipe][0]]
