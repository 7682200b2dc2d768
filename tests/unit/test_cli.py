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
import typer
from typer.testing import CliRunner, Result

import policy
from reward import training
from rlhf import cli, startup
from rlhf.commands import COMMANDS, PLACES
from rlhf.core.errors import DataError, RunError
from rlhf.startup import SPINS

REWARD = (
    "output: runs/x\ndata: {ratings: [{path: demo, format: helpsteer2}]}\n"
    "stages: [{name: a, regression_weight: 1}]\n"
)
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
        def start(config: Any, *, resume: bool, after: Any = None, **_: Any) -> Path:
            noted.append((name, config, resume))
            config.output.mkdir()
            (config.output / "eval.json").write_text(EVALUATION[name])
            (config.output / "metrics.jsonl").write_text('{"step": 1, "memory/peak_gib": 1.25}\n')
            return config.output

        return start

    def dry_run(config: Any) -> list[str]:
        noted.append(("dry", config, None))
        return ["7 items"]

    for package, name in ((training, "train_reward"), (policy, "align_policy")):
        recipe = types.SimpleNamespace(**{name: runner(name), "dry_run": dry_run})
        monkeypatch.setattr(package, "recipe", recipe, raising=False)
        monkeypatch.setitem(sys.modules, f"{package.__name__}.recipe", recipe)
    monkeypatch.setitem(sys.modules, "policy.training.dry_run", types.SimpleNamespace(dry_run=dry_run))
    return noted


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def start(*_: Any, **__: Any) -> Path:
        raise error

    monkeypatch.setattr(training, "recipe", types.SimpleNamespace(train_reward=start), raising=False)


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
    assert "\nadapter.rank: a whole number of at least 1; default 16\n    LoRA rank.\n" in result.stdout


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
def test_a_dry_run_only_says_what_would_run(
    name: str, configs: dict[str, str], calls: Calls, tmp_path: Path
) -> None:
    result = run(name, configs[name], "--dry-run", "--output", str(tmp_path / "run"))
    assert [called for called, _, _ in calls] == ["dry"]
    assert (result.exit_code, result.stdout) == (0, "7 items\n")


def test_a_bad_config_is_one_message_and_exit_code_2(configs: dict[str, str], calls: Calls) -> None:
    result = run("train-reward", configs["train-reward"], "adapter.rnk=4")
    assert result.exit_code == 2
    found, allowed, fix = result.stderr.splitlines()
    assert found.startswith("Error: command line: ") and "'adapter.rnk'" in found and "'rank'" in found
    assert allowed == "Allowed: rank, alpha, dropout, targets"
    assert fix.startswith("Do this: ")
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
        (["trian-reward"], "'train-reward'"),
        (["train-reward"], "'CONFIG.yaml'"),
        (["train-reward", "a.yaml", "--ouput", "x"], "--ouput"),
    ],
)
def test_a_mistyped_command_line_is_exit_code_2(words: list[str], expected: str) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert expected in result.stderr


def test_libraries_are_quietened_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in startup.QUIET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    monkeypatch.setattr(sys, "argv", ["rlhf", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"


def subprocess_run(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m rlhf WORDS` in a process of its own, which finds this checkout."""
    root = str(Path(cli.__file__).parents[1])
    path = os.pathsep.join([root, environment.pop("PYTHONPATH", "")]).strip(os.pathsep)
    if environment.pop("LAST", ""):
        path = os.pathsep.join(path.split(os.pathsep)[::-1])
    return subprocess.run(
        [sys.executable, "-m", "rlhf", *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, **environment},
        check=False,
    )


def test_version_names_this_project_and_the_libraries() -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert {line.split()[0] for line in result.stdout.splitlines()} >= {
        "rlhf",
        "torch",
        "trl",
        "transformers",
    }


def test_completion_knows_commands_and_their_options(tmp_path: Path) -> None:
    def completed(words: str) -> set[str]:
        count = str(words.count(" "))
        ask = {"_RLHF_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": count}
        return set(subprocess_run(cwd=tmp_path, **ask).stdout.split())

    assert completed("rlhf tr") == {name for name in COMMANDS if name.startswith("tr")}
    assert "--dry-run" in completed("rlhf train-reward --d")


@pytest.mark.parametrize("first_on_the_path", [False, True])
def test_a_users_modules_replace_none_of_ours(first_on_the_path: bool, tmp_path: Path) -> None:
    """`python -m` puts the current folder first, and `PYTHONPATH=.` does; `score` imports ours of both
    names."""
    (tmp_path / "reward").mkdir()
    shadows = ["policy.py", "reward/__init__.py"]
    if not first_on_the_path:  # with PYTHONPATH Python's own are the user's to replace
        shadows += ["random.py", "logging.py", "statistics.py"]
    for name in shadows:
        (tmp_path / name).write_text(f"raise ImportError('shadowed by {name}')\n")
    place = {"PYTHONPATH": str(tmp_path), "LAST": "1"} if first_on_the_path else {}
    done = subprocess_run("score", "--help", cwd=tmp_path, **place)
    assert (done.returncode, "Usage: rlhf score" in done.stdout) == (0, True), done.stderr


def test_output_under_a_locale_that_is_not_utf_8(tmp_path: Path) -> None:
    ascii_only = {
        "PYTHONIOENCODING": "ascii:strict",
        "PYTHONUTF8": "0",
        "LC_ALL": "C",
        "PYTHONCOERCECLOCALE": "0",
    }
    done = subprocess_run("train-reward", "\N{GREEK SMALL LETTER ALPHA}.yaml", cwd=tmp_path, **ascii_only)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "Error: config \\u03b1.yaml" in done.stderr  # the name as it was typed, and not its bytes


def test_a_user_without_home_and_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any) -> Any:
        raise KeyError("getpwuid(): uid not found")

    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    startup.ensure_home()
    assert Path.home() == tmp_path / f"rlhf-home-{os.getuid()}"
    assert Path.home().stat().st_mode & 0o777 == 0o700
    import getpass

    assert getpass.getuser() == f"uid{os.getuid()}"


def test_usage_statistics_are_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in startup.PRIVATE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DO_NOT_TRACK", "0")
    startup.prepare()
    assert (os.environ["HF_HUB_DISABLE_TELEMETRY"], os.environ["DO_NOT_TRACK"]) == ("1", "0")


def test_the_configs_come_with_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    listed = run("configs").stdout.split()
    assert "configs/reward/demo.yaml" in listed and "configs/launch/fsdp2.yaml" in listed
    done = run("train-reward", "configs/reward/demo.yaml", "no_such_key=1")
    assert done.exit_code == 2 and "no_such_key" in done.stderr  # the file was read
    done = run("train-reward", "configs/reward/dmo.yaml")
    assert done.exit_code == 2 and "'configs/reward/demo.yaml'" in done.stderr
    assert run("configs", "--copy", "mine").exit_code == 0
    assert {str(file) for file in Path("mine").rglob("*.yaml")} == {f"mine{name[7:]}" for name in listed}


TEXT = {
    *("annotator", "adjudicator", "repo", "base"),
    *("overrides", "form", "label", "host", "token_env", "format_", "name", "engine", "prompt_column"),
    *(
        "principle",
        "best_of",
        "kl",
        "dtype",
        "quantization",
        "gpus",
        "rollout_gpus",
        "parallel",
        "utilisation",
    ),
}
"""Text arguments that are no paths."""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_text_argument_is_a_path_or_known_not_to_be(name: str) -> None:
    import importlib
    import typing

    module, _, function = COMMANDS[name].function.partition(":")
    command = getattr(importlib.import_module(module), function)
    group = (
        [registered_command.callback for registered_command in command.registered_commands]
        if isinstance(command, typer.Typer)
        else [command]
    )
    hints = {word: kind for answer in group for word, kind in typing.get_type_hints(answer).items()}
    texts = {word for word, kind in hints.items() if "str" in str(kind) and "Path" not in str(kind)}
    assert texts <= PLACES | TEXT, "add it to rlhf.commands.PLACES if it may be a path"


def test_paths_on_the_command_line_are_expanded_once(
    configs: dict[str, str], calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WHERE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    result = run("train-reward", "~/reward.yaml", "--output=$WHERE/run", "benchmark=~/b.jsonl")
    assert result.exit_code == 0, result.output
    ((_, config, _),) = calls
    assert (config.output, config.benchmark) == (tmp_path / "run", str(tmp_path / "b.jsonl"))
    assert not (tmp_path / "~").exists() and not (tmp_path / "$WHERE").exists()
    assert run("train-reward", "$NOT_SET_AT_ALL/x.yaml").exit_code == 2


@pytest.mark.parametrize(
    ("report", "spins"),
    [({}, SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_spin_briefly_unless_something_else_is_set(
    monkeypatch: pytest.MonkeyPatch, report: dict[str, str], spins: str | None
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # put back afterwards
        monkeypatch.delenv(name)
    for name, value in report.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cli, "app", lambda **_: None)
    monkeypatch.setattr(cli, "end_cleanly_on_sigterm", lambda: None)
    cli.main()
    assert os.environ.get("GOMP_SPINCOUNT") == spins
