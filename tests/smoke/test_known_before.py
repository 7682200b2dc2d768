"""What can be known without a model is an error of `--dry-run` too, and of the run before it loads one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Rlhf = Callable[..., Result]


@pytest.fixture
def refused(
    rlhf_command: Rlhf,
    reward_config: Path,
    policy_config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., str]:
    """Runs a command, dry and in earnest, with loading forbidden; both must refuse with the same message,
    returned in one line."""
    configs = {"train-reward": reward_config, "align-policy": policy_config}
    for loader in ("reward.training.recipe.build_model", "policy.recipe.build_trainer"):
        monkeypatch.setattr(loader, lambda *_, **__: pytest.fail("a model was loaded"))

    def run(command: str, *overrides: str) -> str:
        messages = []
        for dry in ([], ["--dry-run"]):
            result = rlhf_command(command, configs[command], *overrides, "--output", tmp_path / "run", *dry)
            assert result.exit_code == 2, result.output
            assert "Traceback" not in result.output
            messages.append(" ".join(result.stderr.split("Error: ")[1].split()))
        assert messages[0] == messages[1]
        return messages[0]

    return run


def test_a_reward_folder_that_is_not_there(refused: Callable[..., str]) -> None:
    assert "runs/nowhere/final" in refused("align-policy", "reward=runs/nowhere/final")
    assert "runs/nowhere/final" in refused("align-policy", "held_out_reward=runs/nowhere/final")
    assert "/nowhere/model" in refused("align-policy", "reward={classifier: /nowhere/model}")


def test_a_start_that_is_not_there(refused: Callable[..., str]) -> None:
    assert "runs/nowhere/final" in refused("train-reward", "start=runs/nowhere/final")


def test_a_start_with_other_attributes(refused: Callable[..., str], tiny_reward: Path) -> None:
    attributes = json.loads((tiny_reward / "reward.json").read_text())["attributes"]
    words = [f"start={tiny_reward}", "attributes=[helpfulness]"]
    assert f"attributes=[{','.join(attributes)}]" in refused("train-reward", *words)


@pytest.mark.parametrize("command", ["train-reward", "align-policy"])
def test_a_max_length_beyond_the_context(refused: Callable[..., str], command: str) -> None:
    assert "model.max_length=512" in refused(command, "model.max_length=513")


@pytest.mark.parametrize("command", ["train-reward", "align-policy"])
def test_a_base_with_a_typo(
    refused: Callable[..., str], command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "'models/tiny'" in refused(command, "model.base=models/tny")


def test_gold_without_checks(refused: Callable[..., str], tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"Question {n}"}) + "\n" for n in range(40)))
    words = ["reward={function: gold}", f"data.prompts=[{{path: {rows}}}]"]
    assert str(rows) in refused("align-policy", *words)
    rows.write_text(
        "".join(json.dumps({"prompt": f"Q{n}", "check": {"answer": "1"}}) + "\n" for n in range(40))
    )
    assert "family" in refused("align-policy", *words)


def test_a_reward_function_with_another_signature(refused: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def f(prompts, completions, answer, **kwargs):\n    return [1.0] * len(completions)\n")
    assert f"{file}:1" in refused("align-policy", f"reward={{function: '{file}:f'}}")


def test_room_for_the_reward_model(refused: Callable[..., str]) -> None:
    assert "rollouts.max_new_tokens=304" in refused(
        "align-policy", "rollouts.max_new_tokens=310", "model.max_length=512"
    )
