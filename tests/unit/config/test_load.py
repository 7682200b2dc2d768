from __future__ import annotations

from pathlib import Path

import pytest

from rlhf.config.load import load_config
from rlhf.config.policy import PolicyConfig
from rlhf.config.reward import RewardConfig
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


def message(file: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(file, RewardConfig, overrides)
    assert caught.value.exit_code == 2
    assert "pydantic" not in str(caught.value)
    return str(caught.value)


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
    text = message(config)
    assert (
        f"{config}:12: unknown key 'stages.0.optimizer.learning_rat'. Did you mean 'learning_rate'?" in text
    )
    assert "Allowed: learning_rate, schedule, warmup_steps, weight_decay, betas, max_grad_norm" in text


def test_unknown_key_of_another_level_is_pointed_to(config: Path) -> None:
    assert "command line: unknown key 'rank'. Did you mean 'adapter.rank'?" in message(config, "rank=8")


def test_unknown_key_above_an_override_is_placed_on_the_command_line(config: Path) -> None:
    assert "command line: unknown key 'modle'. Did you mean 'model'?" in message(config, "modle.base=x")


@pytest.mark.parametrize(
    ("override", "result", "allowed"),
    [
        (
            "adapter.rank=0",
            "adapter.rank: found 0",
            "a whole number of at least 1. Meaning: LoRA rank.",
        ),
        ("adapter.rank=many", 'adapter.rank: found "many"', "a whole number of at least 1"),
        ("adapter.dropout=1.5", "adapter.dropout: found 1.5", "a number from 0 to 1"),
        ("adapter.alpha=-1", "adapter.alpha: found -1", "a number above 0"),
        ("model.dtype=fp16", 'model.dtype: found "fp16"', "one of 'bfloat16', 'float32'"),
        ("model=big", 'model: found "big"', "a mapping with the keys base, revision"),
        ("model.gradient_checkpointing=maybe", 'found "maybe"', "true or false"),
        ("adapter.targets=[1]", "adapter.targets: found [1]", "text, or a list, each item text"),
        ("stages.0.optimizer.betas=[0.9]", "betas: found [0.9]", "a list of 2 (a number, a number)"),
        ("stages.0.max_steps=0", "stages.0.max_steps: found 0", "a whole number of at least 1, or null"),
        ("stages=[]", "stages: found []", "a list of at least 1, each item a mapping with the keys name"),
        ("data.ratings.0.where={a: [[5]]}", "where.a.0: found [5]", "text, or a whole number"),
        ("seed=", "seed: found null", "a whole number"),
    ],
)
def test_a_wrong_value_says_what_was_found_and_what_is_allowed(
    config: Path, override: str, result: str, allowed: str
) -> None:
    text = message(config, override)
    assert text.startswith("command line: ")
    assert result in text
    assert f"Allowed: {allowed}" in text
    assert text.count("Allowed:") == 1


def test_the_fix_names_the_closest_choice_the_default_or_quotes(config: Path) -> None:
    assert "Do this: model.dtype=bfloat16" in message(config, "model.dtype=bflot16")
    assert "the default is adapter.rank=16" in message(config, "adapter.rank=0")
    assert "'model.base=\"123\"'" in message(config, "model.base=123")


def test_a_missing_key_is_named_with_its_meaning(config: Path) -> None:
    config.write_text(REWARD.replace("- name: first\n  regression", "- regression"))
    text = message(config)
    assert "the key 'stages.0.name' is missing" in text
    assert "Allowed: text. Meaning: A short name, used in metrics and folders." in text


def test_a_broken_rule_names_its_place_and_keys(config: Path) -> None:
    config.write_text(REWARD.replace("regression_weight: 1", "regression_weight: 0"))
    text = message(config)
    assert text.startswith(f"{config}:9: stages.0: ")
    assert "regression_weight" in text and "preference_weight" in text


def test_all_mistakes_are_listed_in_the_order_of_the_file(config: Path) -> None:
    config.write_text(REWARD.replace("seed: 3", "seed: x").replace("dtype: float32", "dtyp: a"))
    text = message(config, "adapter.rank=0")
    assert text.startswith(f"{config}: 3 errors\n")
    first, second, third = (
        text.index(part) for part in ("adapter.rank", f"{config}:2: seed", f"{config}:4: unknown")
    )
    assert first < second < third


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 1\nmodel: a: b\n", ":2: is not valid YAML"),
        ("seed: 1\nmodel:\n\tbase: x\n", "Do this: indent with spaces"),
        ("seed: 1\nseed: 2\n", ":2: is not valid YAML: the key 'seed' occurs twice"),
        ("!!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
        ("- a\n", "found a list, not keys with values"),
    ],
)
def test_a_file_that_is_no_mapping_or_no_yaml(config: Path, text: str, expected: str) -> None:
    config.write_text(text)
    assert expected in message(config)


def test_merged_keys_are_not_taken_for_doubled_ones(config: Path) -> None:
    config.write_text(
        REWARD + "- &second {name: second, regression_weight: 1}\n- {<<: *second, name: third}\n"
    )
    assert [stage.name for stage in load_config(config, RewardConfig).stages] == ["first", "second", "third"]


def test_an_empty_file_misses_its_required_keys(config: Path) -> None:
    config.write_text("")
    text = message(config)
    assert all(f"the key '{key}' is missing" in text for key in ("output", "data", "stages"))


def test_a_file_that_is_not_text(config: Path) -> None:
    config.write_bytes(b"seed: \xff\n")
    assert "is not text (byte 6 is not UTF-8)" in message(config)


@pytest.mark.parametrize("typed", ["rewrd.yaml", "reward", "reward.yml"])
def test_a_missing_file_points_to_the_closest_beside_it(config: Path, typed: str) -> None:
    text = message(config.parent / typed)
    assert f"config {config.parent / typed}: there is no such file" in text
    assert f"Did you mean '{config}'?" in text


def test_a_missing_folder_points_to_the_configs_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs" / "reward").mkdir(parents=True)
    (tmp_path / "configs" / "reward" / "demo.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert "no folder rewards. Did you mean" not in message(Path("rewards/demo.yaml"))
    assert "Allowed: configs/reward/demo.yaml" in message(Path("rewards/demo.yaml"))


def test_a_folder_is_no_config(config: Path) -> None:
    text = message(config.parent)
    assert "is a folder, not a config file" in text
    assert f"Allowed: {config}" in text


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("--seed", "found '--seed'"),
        ("a..b=1", "found 'a..b=1'"),
        ("stages.1.name=x", "'stages' is a list of 1, and has no item '1'"),
        ("seed.x=1", "'seed' is 3, which has no 'x' below it"),
        ("seed=[", "the value of 'seed=[' is not valid YAML"),
    ],
)
def test_an_override_that_cannot_be_applied(config: Path, override: str, expected: str) -> None:
    text = message(config, override)
    assert text.startswith("command line: ")
    assert expected in text


def test_a_value_that_holds_itself_is_refused_like_any_other(config: Path) -> None:
    config.write_text(REWARD.replace("seed: 3", "seed: &a [*a]"))
    assert "seed: found [[...]]" in message(config)


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
