"""User callbacks by dotted name."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf.core.errors import ConfigError
from rlhf.tracking.callbacks import load_callbacks

names = (f"callbacks_of_a_test_{number}" for number in itertools.count())


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a module into the current folder; returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(body: str) -> str:
        name = next(names)
        (tmp_path / f"{name}.py").write_text("from transformers import TrainerCallback\n" + body)
        return name

    return write


def test_a_class_of_the_current_folder_is_made(module: Callable[[str], str]) -> None:
    name = module("class Mine(TrainerCallback):\n    here = 3\n")
    path = list(sys.path)
    [callback] = load_callbacks([f"{name}:Mine"])
    assert callback.here == 3 and sys.path == path


@pytest.mark.parametrize(
    ("body", "suffix", "result", "fix"),
    [
        ("class Mine(TrainerCallback): pass\n", ":Mime", "'Mine'", ":Mine"),
        ("class Mine: pass\n", ":Mine", "Mine", "class Mine(transformers.TrainerCallback)"),
        ("class Mine(TrainerCallback):\n    def __init__(self, x): ...\n", ":Mine", "TypeError", "defaults"),
        ("1 / 0\n", ":Mine", "ZeroDivisionError", "fix it"),
        ("import no_such_module\n", ":Mine", "no_such_module", "fix it"),
        ("", "", "callbacks.0 is", ":CLASS"),
    ],
)
def test_each_mistake_has_its_own_message(
    module: Callable[[str], str], body: str, suffix: str, result: str, fix: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        load_callbacks([module(body) + suffix])
    assert result in refused.value.found and fix in refused.value.fix


def test_a_module_that_is_not_there(module: Callable[[str], str]) -> None:
    with pytest.raises(ConfigError) as refused:
        load_callbacks(["no_such_module:Mine"])
    assert "no_such_module" in refused.value.found and "no_such_module.py" in refused.value.fix


COUNTING = """
import json, pathlib
class Counting(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **kwargs):
        with pathlib.Path("logged.jsonl").open("a") as file:
            file.write(json.dumps([state.global_step, sorted(logs)]) + "\\n")
"""


def test_both_commands_pass_figures_to_a_callback_and_check_it_before_anything_else(
    module: Callable[[str], str],
    rlhf_command: Callable[..., Any],
    policy_config: Path,
    reward_config: Path,
    tmp_path: Path,
) -> None:
    name = module(COUNTING)
    for command, config, metric in (
        ("align-policy", policy_config, "kl/mean"),
        ("train-reward", reward_config, "loss/total"),
    ):
        refused = rlhf_command(command, config, "callbacks=[no_such:Thing]", "--output", tmp_path / "refused")
        assert refused.exit_code == 2, refused.output
        assert not (tmp_path / "refused").exists()
        (tmp_path / "logged.jsonl").unlink(missing_ok=True)
        done = rlhf_command(command, config, f"callbacks={name}:Counting", "--output", tmp_path / command)
        assert done.exit_code == 0, done.output
        lines = (tmp_path / "logged.jsonl").read_text().splitlines()
        metrics = (tmp_path / command / "metrics.jsonl").read_text().splitlines()
        assert sum(metric in line for line in lines) == sum(f'"{metric}"' in line for line in metrics) > 2
