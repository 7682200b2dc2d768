from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlhf.config.load import load_config
from rlhf.config.policy import PolicyConfig
from rlhf.config.reward import RewardConfig, StageConfig
from rlhf.core.errors import ConfigError

REWARD = """\
output: runs/x
seed: 3
model:
  dtype: float32
data:
  ratings:
  - {path: demo, format: helpsteer2}
stages:
- name: first
  regression_weight: 1
  optimizer:
    learning_rate: 2e-4
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "reward.yaml"
    file.write_text(REWARD)
    return file


def refused(file: Path, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(file, RewardConfig, overrides)
    assert caught.value.exit_code == 2
    assert "pydantic" not in str(caught.value)
    return caught.value


def test_a_file_becomes_a_config_with_defaults(config: Path) -> None:
    loaded = load_config(config, RewardConfig)
    assert (loaded.seed, loaded.model.dtype, loaded.model.base) == (3, "float32", "embedded")
    assert loaded.stages[0].optimizer.learning_rate == 0.0002


def test_overrides_reach_into_lists_and_absent_keys_and_the_last_wins(config: Path) -> None:
    loaded = load_config(
        config,
        RewardConfig,
        ["stages.0.optimizer.learning_rate=1e-5", "seed=4", "seed=5", "adapter.rank=8", "model.revision="],
    )
    assert loaded.stages[0].optimizer.learning_rate == 0.00001
    assert (loaded.seed, loaded.adapter.rank, loaded.model.revision) == (5, 8, None)
    assert loaded.stages[0].regression_weight == 1


def test_a_whole_list_can_be_an_override(config: Path) -> None:
    loaded = load_config(config, RewardConfig, ["adapter.targets=[q_proj, v_proj]"])
    assert loaded.adapter.targets == ["q_proj", "v_proj"]


def test_output_wins_over_file_and_override(config: Path) -> None:
    assert load_config(config, RewardConfig).output == Path("runs/x")
    assert load_config(config, RewardConfig, ["output=a"], Path("b")).output == Path("b")


def test_unknown_key_names_file_line_key_neighbour_and_the_keys_of_its_level(config: Path) -> None:
    config.write_text(REWARD.replace("learning_rate", "learning_rat"))
    error = refused(config)
    assert error.found.startswith(f"{config}:12: ")
    assert "'stages.0.optimizer.learning_rat'" in error.found and "'learning_rate'" in error.found
    assert error.allowed == "learning_rate, schedule, warmup_steps, weight_decay, betas, max_grad_norm"


def test_unknown_key_of_another_level_is_pointed_to(config: Path) -> None:
    error = refused(config, "rank=8")
    assert "'rank'" in error.found and "'adapter.rank'" in error.found


def test_unknown_key_above_an_override_is_placed_on_the_command_line(config: Path) -> None:
    error = refused(config, "modle.base=x")
    assert error.found.startswith("command line: ") and "'modle'" in error.found and "'model'" in error.found


@pytest.mark.parametrize(
    ("override", "key", "value", "allowed"),
    [
        (
            "adapter.rank=0",
            "adapter.rank: ",
            "0",
            "LoRA rank",
        ),
        ("adapter.rank=many", "adapter.rank: ", '"many"', "1"),
        ("adapter.dropout=1.5", "adapter.dropout: ", "1.5", "1"),
        ("adapter.alpha=-1", "adapter.alpha: ", "-1", "0"),
        ("model.dtype=fp16", "model.dtype: ", '"fp16"', "'bfloat16', 'float32'"),
        ("model=big", "model: ", '"big"', "base, revision"),
        ("model.gradient_checkpointing=maybe", "gradient_checkpointing", '"maybe"', "true"),
        ("adapter.targets=[1]", "adapter.targets: ", "[1]", "list"),
        ("stages.0.optimizer.betas=[0.9]", "betas: ", "[0.9]", "2"),
        ("stages.0.max_steps=0", "stages.0.max_steps: ", "0", "null"),
        ("stages=[]", "stages: ", "[]", "name"),
        ("data.ratings.0.where={a: [[5]]}", "where.a.0: ", "[5]", "text"),
        ("seed=", "seed: ", "null", "number"),
    ],
)
def test_a_wrong_value_says_what_was_found_and_what_is_allowed(
    config: Path, override: str, key: str, value: str, allowed: str
) -> None:
    error = refused(config, override)
    assert error.found.startswith("command line: ")
    assert key in error.found and error.found.endswith(value)
    assert allowed in error.allowed


def test_the_fix_names_the_closest_choice_the_default_or_quotes(config: Path) -> None:
    assert refused(config, "model.dtype=bflot16").fix == "model.dtype=bfloat16"
    assert "adapter.rank=16" in refused(config, "adapter.rank=0").fix
    assert "'model.base=\"123\"'" in refused(config, "model.base=123").fix


def test_a_missing_key_is_named_with_its_meaning(config: Path) -> None:
    config.write_text(REWARD.replace("- name: first\n  regression", "- regression"))
    error = refused(config)
    assert "'stages.0.name'" in error.found
    assert str(StageConfig.model_fields["name"].description).rstrip(".") in error.allowed


def test_a_broken_rule_names_its_place_and_keys(config: Path) -> None:
    config.write_text(REWARD.replace("regression_weight: 1", "regression_weight: 0"))
    error = refused(config)
    assert error.found.startswith(f"{config}:9: stages.0: ")
    assert "regression_weight" in error.found and "preference_weight" in error.found


def test_all_mistakes_are_listed_in_the_order_of_the_file(config: Path) -> None:
    config.write_text(REWARD.replace("seed: 3", "seed: x").replace("dtype: float32", "dtyp: a"))
    text = refused(config, "adapter.rank=0").found
    assert text.startswith(f"{config}: 3 ")
    first, second, third = (
        text.index(part) for part in ("adapter.rank", f"{config}:2: seed", f"{config}:4: ")
    )
    assert first < second < third


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 1\nmodel: a: b\n", ":2: "),
        ("seed: 1\nmodel:\n\tbase: x\n", ":3: "),
        ("seed: 1\nseed: 2\n", ":2: .*'seed'"),
        ("!!python/object/apply:os.system ['true']\n", "python/object/apply"),
        ("- a\n", "list"),
    ],
)
def test_a_file_that_is_no_mapping_or_no_yaml(config: Path, text: str, expected: str) -> None:
    config.write_text(text)
    assert re.search(expected, refused(config).found)


def test_merged_keys_are_not_taken_for_doubled_ones(config: Path) -> None:
    config.write_text(
        REWARD + "- &second {name: second, regression_weight: 1}\n- {<<: *second, name: third}\n"
    )
    assert [stage.name for stage in load_config(config, RewardConfig).stages] == ["first", "second", "third"]


def test_an_empty_file_misses_its_required_keys(config: Path) -> None:
    config.write_text("")
    text = refused(config).found
    assert all(f"'{key}'" in text for key in ("output", "data", "stages"))


def test_a_file_that_is_not_text(config: Path) -> None:
    config.write_bytes(b"seed: \xff\n")
    assert "byte 6" in refused(config).found


@pytest.mark.parametrize("typed", ["rewrd.yaml", "reward", "reward.yml"])
def test_a_missing_file_points_to_the_closest_beside_it(config: Path, typed: str) -> None:
    found = refused(config.parent / typed).found
    assert f"{config.parent / typed}: " in found and f"'{config}'" in found


def test_a_missing_folder_points_to_the_configs_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs" / "reward").mkdir(parents=True)
    (tmp_path / "configs" / "reward" / "demo.yaml").touch()
    monkeypatch.chdir(tmp_path)
    error = refused(Path("rewards/demo.yaml"))
    assert error.allowed == "configs/reward/demo.yaml"


def test_a_folder_is_no_config(config: Path) -> None:
    error = refused(config.parent)
    assert str(config.parent) in error.found and error.allowed == str(config)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("--seed", ("'--seed'",)),
        ("a..b=1", ("'a..b=1'",)),
        ("stages.1.name=x", ("'stages'", "'1'")),
        ("seed.x=1", ("'seed' is 3", "'x'")),
        ("seed=[", ("'seed=['",)),
    ],
)
def test_an_override_that_cannot_be_applied(config: Path, override: str, expected: tuple[str, ...]) -> None:
    found = refused(config, override).found
    assert found.startswith("command line: ")
    assert all(part in found for part in expected)


def test_a_value_that_holds_itself_is_refused_like_any_other(config: Path) -> None:
    config.write_text(REWARD.replace("seed: 3", "seed: &a [*a]"))
    assert "seed: " in (found := refused(config).found) and "[[...]]" in found


def test_paths_inside_a_config_stay_relative_to_the_current_folder(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("output: runs/p\nreward: runs/r/final\ndata: {prompts: [{path: demo}]}\n")
    loaded = load_config(file, PolicyConfig)
    assert (loaded.output, loaded.reward[0].place) == (Path("runs/p"), "runs/r/final")


@pytest.mark.parametrize(
    ("line", "fix"),
    [
        ("model: {base: ${HOME}/x}", "quotes"),
        ("\tseed: 1", "spaces"),
        ("seed: 1\nseed: 2", "remove"),
        ("recipe: a: b", "quotes"),
        ("output: @x", "quotes"),
        ("output: *x", "quotes"),
        ("model: {base: x", "bracket"),
    ],
)
def test_each_fault_of_yaml_has_a_fix_of_its_own(tmp_path: Path, line: str, fix: str) -> None:
    (tmp_path / "bad.yaml").write_text(f"{line}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "bad.yaml", RewardConfig)
    assert fix in caught.value.fix


def test_a_long_line_is_shown_around_its_fault(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(
        "model: {base: '" + "a" * 200 + "', dtype: @here, " + "b: 1, " * 40 + "}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "bad.yaml", RewardConfig)
    assert "@here" in caught.value.found and len(caught.value.found) < 250 + len(str(tmp_path))
