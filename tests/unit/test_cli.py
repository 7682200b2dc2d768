from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import policy
import reward
from rlhf import cli
from rlhf.commands import COMMANDS
from rlhf.core.errors import DataError, RunError

REWARD = "output: runs/x\ndata: {ratings: [{path: demo}]}\nstages: [{name: a, regression_weight: 1}]\n"
POLICY = "output: runs/p\nreward: runs/x/final\ndata: {prompts: [{path: demo}]}\n"

EVALUATION = {
    "train_reward": "{}",
    "align_policy": json.dumps(
        {
            "before": {"reward": 1.0},
            "after": {"reward": 2.0},
            "difference": {"reward": {"mean": 1.0, "ci95": [0.5, 1.5]}},
            "prompts": 8,
            "samples": 2,
        }
    ),
}

Calls = list[tuple[str, Any, bool | None]]


def run(*words: str) -> Result:
    return CliRunner().invoke(cli.app, list(words), prog_name="rlhf")


@pytest.fixture
def configs(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "reward.yaml").write_text(REWARD)
    (tmp_path / "policy.yaml").write_text(POLICY)
    return {"train-reward": str(tmp_path / "reward.yaml"), "align-policy": str(tmp_path / "policy.yaml")}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Recipes that only note how they were called, and leave the least a run folder can hold."""
    noted: Calls = []

    def runner(name: str) -> Callable[..., Path]:
        def start(config: Any, *, resume: bool) -> Path:
            noted.append((name, config, resume))
            config.output.mkdir()
            (config.output / "eval.json").write_text(EVALUATION[name])
            (config.output / "metrics.jsonl").write_text('{"step": 1, "memory/peak_gib": 1.25}\n')
            return config.output

        return start

    def dry_run(config: Any) -> list[str]:
        noted.append(("dry", config, None))
        return ["7 items"]

    for package, name in ((reward, "train_reward"), (policy, "align_policy")):
        recipe = types.SimpleNamespace(**{name: runner(name), "dry_run": dry_run})
        monkeypatch.setattr(package, "recipe", recipe, raising=False)
    return noted


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def start(*_: Any, **__: Any) -> Path:
        raise error

    monkeypatch.setattr(reward, "recipe", types.SimpleNamespace(train_reward=start), raising=False)


def test_help_lists_every_command_fast_and_without_torch() -> None:
    code = "import sys; sys.argv = ['rlhf', '--help']\nfrom rlhf.cli import main\ntry: main()\n"
    code += (
        "finally: print('heavy:', sorted({'torch', 'transformers', 'pydantic', 'trl'} & set(sys.modules)))"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.monotonic() - started < 2  # a fifth of a second on an idle machine; torch alone takes longer
    assert all(f"  {name}  " in done.stdout for name in COMMANDS)
    assert "heavy: []" in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_each_command_stands_alone(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0, result.output
    assert f"Usage: rlhf {name}" in result.stdout
    assert "Example" in result.stdout
    assert f"rlhf {name}" in result.stdout.split("Example", 1)[1]


@pytest.mark.parametrize("name", ["train-reward", "align-policy"])
def test_explain_needs_no_config(name: str) -> None:
    result = run(name, "--explain")
    assert result.exit_code == 0
    assert (
        "\nadapter.rank: a whole number of at least 1; default 16\n    Rank of the update.\n" in result.stdout
    )


@pytest.mark.parametrize(
    ("name", "function"), [("train-reward", "train_reward"), ("align-policy", "align_policy")]
)
def test_a_command_hands_its_config_to_its_recipe(
    name: str, function: str, configs: dict[str, str], calls: Calls, tmp_path: Path
) -> None:
    output = tmp_path / "elsewhere"
    result = run(name, configs[name], "adapter.rank=4", "--output", str(output), "seed=9", "--resume")
    assert result.exit_code == 0, result.output
    ((called, config, resume),) = calls
    assert (called, resume) == (function, True)
    assert (config.adapter.rank, config.seed, config.output) == (4, 9, output)
    assert f"{output / 'final'}\nReport: {output / 'report.html'}\n" in result.stdout
    if name == "align-policy":
        assert re.search(r"reward\W+1\.0+\W+2\.0+\W+\+1\.0+\W+0\.50* to 1\.50*", result.stdout)
        assert "Peak memory of all processes: 1.25 GiB" in result.stdout


@pytest.mark.parametrize("name", ["train-reward", "align-policy"])
def test_a_dry_run_only_says_what_would_run(name: str, configs: dict[str, str], calls: Calls) -> None:
    result = run(name, configs[name], "--dry-run")
    assert [called for called, _, _ in calls] == ["dry"]
    assert (result.exit_code, result.stdout) == (0, "7 items\n")


def test_a_bad_config_is_one_message_and_exit_code_2(configs: dict[str, str], calls: Calls) -> None:
    result = run("train-reward", configs["train-reward"], "adapter.rnk=4")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "Error: command line: unknown key 'adapter.rnk'. Did you mean 'rank'?",
        "Allowed: rank, alpha, dropout, targets",
        "Do this: rename the key or take it out",
    ]
    assert calls == []


@pytest.mark.parametrize(
    ("error", "code"),
    [(DataError("row.jsonl:3: [bold]no[/bold] :smile: " + "x" * 200), 2), (RunError("it failed"), 1)],
)
def test_an_error_is_shown_as_it_stands_with_its_exit_code(
    error: Exception, code: int, configs: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(monkeypatch, error)
    result = run("train-reward", configs["train-reward"])
    assert (result.exit_code, result.stderr) == (code, f"Error: {error}\n")


def test_an_interruption_is_one_line_and_exit_code_130(
    configs: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(monkeypatch, KeyboardInterrupt())
    result = run("train-reward", configs["train-reward"])
    assert result.exit_code == 130
    assert result.stderr.startswith("Interrupted: ")
    assert result.stderr.count("\n") == 1


def test_any_other_error_keeps_its_trace(configs: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, ZeroDivisionError("a bug"))
    result = run("train-reward", configs["train-reward"])
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian-reward"], "No such command 'trian-reward'. Did you mean 'train-reward'"),
        (["train-reward"], "Missing argument 'CONFIG.yaml'"),
        (["train-reward", "a.yaml", "--ouput", "x"], "No such option: --ouput"),
    ],
)
def test_a_mistyped_command_line_is_exit_code_2(words: list[str], expected: str) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert expected in result.stderr


def test_libraries_are_quietened_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in cli.QUIET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    monkeypatch.setattr(sys, "argv", ["rlhf", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
