"""Every row of the paper's table through the real command, ExPO and another model to start from included."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from reward.evaluation.paper_table import ROWS, ROWS_WITH_JUSTIFIER
from reward.scorer import Scorer
from rlhf import cli
from rlhf.config.recipes import RECIPES
from rlhf.core.records import Message

Rlhf = Callable[..., Result]
CONVERSATION = (Message("user", "Hi."), Message("assistant", "Hello there."))
QUICK = {
    "epochs": 1,
    "max_steps": 1,
    "batch_size": 4,
    "optimizer": {"learning_rate": 1e-2, "warmup_steps": 0},
}


@pytest.fixture(scope="module")
def recipe_config(reward_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run's config with the settings that recipes choose from: one update a stage."""
    settings = yaml.safe_load(reward_config.read_text())
    settings["stages"] = [{"name": name, **QUICK} for name in ("regression", "preference")]
    settings["recipe"] = "hybrid"
    file = tmp_path_factory.mktemp("configs") / "recipe.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


@pytest.fixture(scope="module")
def expo_run(recipe_config: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The paper's best recipe, with some updates for the stages to part, and what it printed."""
    run = tmp_path_factory.mktemp("runs") / "expo"
    words = [
        "recipe=helpfulness-bt-scaled-expo",
        "stages.1.max_steps=6",
        "stages.1.epochs=9",
        "expo.refine=0.05",
    ]
    result = CliRunner().invoke(cli.app, ["train-reward", str(recipe_config), *words, "--output", str(run)])
    assert result.exit_code == 0, result.output
    return run, result.stdout


OF_THE_SAME_STAGES = ("bt-regular", "helpfulness-bt-regular", "helpfulness-bt-margin")
"""Recipes that differ from another one, which every `make test` trains, only by the preference loss."""


def updates(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss/total" in row]


def reward_of(final: Path) -> float:
    return Scorer.load(final).score([CONVERSATION])[0].reward


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in OF_THE_SAME_STAGES else [])
        for name, recipe in RECIPES.items()
        if not recipe.expo
    ],
)
def test_a_recipe_trains(rlhf_command: Rlhf, recipe_config: Path, tmp_path: Path, recipe: str) -> None:
    run = tmp_path / "run"
    result = rlhf_command("train-reward", recipe_config, f"recipe={recipe}", "--output", run)
    assert result.exit_code == 0, result.output
    assert [row["stage"] for row in updates(run)] == list(RECIPES[recipe].stages)
    (score,) = Scorer.load(run / "final").score([CONVERSATION])
    assert tuple(score.attributes) == RECIPES[recipe].attributes


def test_expo_leaves_the_best_factor_and_what_it_came_from(expo_run: tuple[Path, str]) -> None:
    run, printed = expo_run
    content = json.loads((run / "expo.json").read_text())
    trials = {trial["factor"]: trial for trial in content["trials"]}
    assert set(trials) >= {1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0}
    chosen = min(content["trials"], key=lambda trial: (-trial["accuracy"], trial["loss"], trial["factor"]))
    assert content["factor"] == chosen["factor"]
    assert f"on {content['pairs']} held-out pairs" in printed
    assert ("is the best of" if chosen["factor"] > 1 else "the strong model itself is saved") in printed
    weak, strong, final = (load(run / folder) for folder in (content["weak"], content["strong"], "final"))
    head = "base_model.model.score.weight"
    expected = weak[head] + content["factor"] * (strong[head] - weak[head])
    assert final[head].allclose(expected, atol=1e-6) and not weak[head].equal(strong[head])
    card = json.loads((run / "final" / "reward.json").read_text())
    assert card["extrapolated"]["factor"] == content["factor"]


def load(folder: Path) -> dict[str, Any]:
    return dict(load_file(folder / "adapter_model.safetensors"))


def test_what_is_saved_is_what_was_judged(expo_run: tuple[Path, str]) -> None:
    """The held-out accuracy of the saved model, from its folder, is the one the search saw."""
    run, _ = expo_run
    content = json.loads((run / "expo.json").read_text())
    chosen = next(trial for trial in content["trials"] if trial["factor"] == content["factor"])
    evaluation = json.loads((run / "eval.json").read_text())
    assert evaluation["count"] == content["pairs"]
    assert evaluation["overall"] == pytest.approx(chosen["accuracy"])


def test_a_factor_beyond_1_is_what_the_command_makes_of_the_stages(
    rlhf_command: Rlhf, recipe_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reward.training import expo

    monkeypatch.setattr(expo, "best", lambda trials: trials[-1])  # whatever so few pairs say
    run, out = tmp_path / "run", tmp_path / "out"
    words = [
        "recipe=helpfulness-bt-scaled-expo",
        "expo.factors=[1.7]",
        "expo.refine=",
        "stages.1.max_steps=3",
    ]
    result = rlhf_command("train-reward", recipe_config, *words, "stages.1.epochs=9", "--output", run)
    assert result.exit_code == 0, result.output
    weak, strong = (run / "stages" / name for name in ("regression", "preference"))
    assert (
        "Factor 1.7 is the best of 2:" in result.stdout and f"The latter stays in {strong}." in result.stdout
    )
    made = rlhf_command("extrapolate", weak, strong, "--factor=1.7", "--output", out)
    assert made.exit_code == 0, made.output
    assert reward_of(out) == pytest.approx(reward_of(run / "final"), abs=1e-5)
    assert json.loads((run / "final" / "adapter_config.json").read_text())["r"] == 2 * 4
    assert abs(reward_of(out) - reward_of(strong)) > 1e-3


def test_a_factor_of_1_is_the_strong_model(rlhf_command: Rlhf, recipe_config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["recipe=helpfulness-bt-scaled-expo", "expo.factors=[1.0]", "expo.refine="]
    result = rlhf_command("train-reward", recipe_config, *words, "--output", run)
    assert result.exit_code == 0, result.output
    assert "No other factor does better than 1: the strong model itself is saved" in result.stdout
    assert reward_of(run / "final") == pytest.approx(reward_of(run / "stages" / "preference"), abs=1e-6)


def test_a_rank_is_kept_and_its_error_reported(
    rlhf_command: Rlhf, recipe_config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ["recipe=helpfulness-bt-scaled-expo", "expo.rank=2", "stages.1.max_steps=3", "stages.1.epochs=9"]
    result = rlhf_command("train-reward", recipe_config, *words, "--output", run)
    assert result.exit_code == 0, result.output
    assert json.loads((run / "final" / "adapter_config.json").read_text())["r"] == 2
    content = json.loads((run / "expo.json").read_text())
    assert content["rank"] == 2 and 0 < content["truncation_error"] < 1
    assert f"Truncated to rank 2: relative error {content['truncation_error']:.3g}" in result.stdout


def test_a_start_takes_the_place_of_the_regression(
    expo_run: tuple[Path, str], rlhf_command: Rlhf, recipe_config: Path, tmp_path: Path
) -> None:
    run, helpfulness = tmp_path / "run", expo_run[0] / "stages" / "regression"
    slow = "stages.1.optimizer.learning_rate=1e-12"
    words = ["recipe=helpfulness-bt-regular", f"start={helpfulness}", slow, "head_start=16"]
    result = rlhf_command("train-reward", recipe_config, *words, "--output", run)
    assert result.exit_code == 0, result.output
    assert [row["stage"] for row in updates(run)] == ["preference"]
    assert "Fitting the head" not in result.output
    # A learning rate of almost nothing leaves the model it started from, head and all.
    assert reward_of(run / "final") == pytest.approx(reward_of(helpfulness), abs=1e-5)
    again = rlhf_command("train-reward", run / "config.yaml", "--output", run, "--resume")
    assert again.exit_code == 0, again.output


def test_expo_from_a_start(
    expo_run: tuple[Path, str], rlhf_command: Rlhf, recipe_config: Path, tmp_path: Path
) -> None:
    run, helpfulness = tmp_path / "run", expo_run[0] / "stages" / "regression"
    words = ["recipe=helpfulness-bt-scaled-expo", f"start={helpfulness}", "expo.refine="]
    result = rlhf_command("train-reward", recipe_config, *words, "--output", run)
    assert result.exit_code == 0, result.output
    assert json.loads((run / "expo.json").read_text())["weak"] == "stages/start"
    ours, theirs = load(run / "stages" / "start"), load(helpfulness)
    assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)


def test_stages_without_validation_are_kept_as_they_ended(
    rlhf_command: Rlhf, recipe_config: Path, tmp_path: Path
) -> None:
    words = ["recipe=helpfulness-bt-scaled", "data.validation_share=0", "--output", tmp_path / "run"]
    result = rlhf_command("train-reward", recipe_config, *words)
    assert result.exit_code == 0, result.output
    checkpoints = tmp_path / "run" / "checkpoints"
    kept = load_file(checkpoints / "best-preference.safetensors")
    last = load_file(checkpoints / "step-2" / "trainable.safetensors")
    assert all(kept[name].equal(last[name]) for name in last)


def test_centring_is_logged_and_weighs(rlhf_command: Rlhf, recipe_config: Path, tmp_path: Path) -> None:
    words = ["recipe=bt-regular", "stages.1.centering_weight=0.5", "--output", tmp_path / "run"]
    result = rlhf_command("train-reward", recipe_config, *words)
    assert result.exit_code == 0, result.output
    (row,) = updates(tmp_path / "run")
    assert row["loss/centering"] > 0
    assert row["loss/total"] == pytest.approx(row["loss/bt"] + 0.5 * row["loss/centering"], rel=1e-5)


def refused(result: Result) -> str:
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split("Error: ")[1].split())


def test_mistakes(
    expo_run: tuple[Path, str], rlhf_command: Rlhf, recipe_config: Path, tmp_path: Path
) -> None:
    def train(*words: str) -> str:
        return refused(rlhf_command("train-reward", recipe_config, *words, "--output", tmp_path / "run"))

    helpfulness = expo_run[0] / "stages" / "regression"
    message = train("recipe=bt-regular", f"start={helpfulness}", "adapter.rank=8")
    assert str(helpfulness) in message and "adapter.rank" in message
    assert "runs/nowhere/final" in train("recipe=bt-regular", "start=runs/nowhere/final")
    expo = train("recipe=helpfulness-bt-scaled-expo", "data.validation_share=0")
    assert "expo" in expo and "data.validation_share" in expo
    assert "'bt-scaled'" in train("recipe=bt-scald")
    assert not (tmp_path / "run" / "final").exists()


def test_a_dry_run_tells_of_start_and_expo(
    expo_run: tuple[Path, str], rlhf_command: Rlhf, recipe_config: Path
) -> None:
    helpfulness = expo_run[0] / "stages" / "regression"
    words = ["recipe=helpfulness-bt-scaled-expo", f"start={helpfulness}", "stages.1.centering_weight=0.01"]
    result = rlhf_command("train-reward", recipe_config, *words, "--dry-run")
    assert result.exit_code == 0, result.output
    assert str(helpfulness) in result.stdout
    assert "stage preference: 1 x scaled Bradley-Terry + 0.01 x centring;" in result.stdout
    assert "then ExPO from start to preference, its factor chosen on" in result.stdout


@pytest.mark.slow
def test_the_paper_table_trains_every_row_and_goes_on_where_it_was(
    recipe_config: Path, tmp_path: Path, rlhf_command: Rlhf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows run in this process instead of one each, which would import torch ten times."""
    ran: list[list[str]] = []

    def in_process(*words: object) -> None:
        ran.append([str(word) for word in words])
        result = CliRunner().invoke(cli.app, ran[-1])
        assert result.exit_code == 0, result.output

    monkeypatch.setattr("rlhf.commands.paper_table.run_command", in_process)
    settings = yaml.safe_load(recipe_config.read_text())
    del settings["data"]["ratings"]
    justifier = {name: settings[name] for name in ("output", "model", "adapter")}
    justifier["data"] = {"justifications": settings["data"]["preferences"]}
    justifier |= {"max_steps": 1, "batch_size": 2, "micro_batch_size": 2, "max_new_tokens": 4}
    (tmp_path / "justifier.yaml").write_text(yaml.safe_dump(justifier))
    words = ["paper-table", str(recipe_config), "data.test_share=0.3", "--seeds", "1"]
    words += ["--justifier", str(tmp_path / "justifier.yaml"), "--output"]
    result = rlhf_command(*words, str(tmp_path / "table"))
    assert result.exit_code == 0, result.output
    assert [words[0] for words in ran].count("train-reward") == len(ROWS) - 1
    table = json.loads((tmp_path / "table" / "table.json").read_text())
    assert list(table["rows"]) == list(ROWS_WITH_JUSTIFIER) and table["factor"] == 1.52
    assert all(0 <= row["accuracy"] <= 1 for row in table["rows"].values())
    expo = json.loads((tmp_path / "table/seed-0/helpfulness-bt-scaled-expo/final/reward.json").read_text())
    assert expo["attributes"] == ["helpfulness"]
    assert "Bradley-Terry, margin" in (tmp_path / "table" / "report.html").read_text()
    ran.clear()
    assert rlhf_command(*words, str(tmp_path / "table")).exit_code == 0
    assert not ran  # everything is there


def test_the_paper_table_wants_pairs_that_chose_nothing(
    recipe_config: Path, tmp_path: Path, rlhf_command: Rlhf
) -> None:
    result = rlhf_command("paper-table", str(recipe_config), "--output", str(tmp_path / "table"))
    assert result.exit_code == 2
    assert "data.test_share=0.2" in result.output
