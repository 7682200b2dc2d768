"""SIGTERM and SIGINT at odd moments of both commands: the exit code of the shell, and a run that resumes."""

from __future__ import annotations

import importlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf.runs.signals import end_cleanly_on_sigterm

ONE_UPDATE = {
    "align-policy": ["steps=1", "evaluation.prompts=1"],
    "train-reward": ["stages.0.max_steps=1", "stages.1.max_steps=1"],
}


def slow(*values: Any) -> Any:
    """A case that `make test` leaves out."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """What `rlhf.cli.main` sets for its process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    end_cleanly_on_sigterm()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def remains(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.name != ".lock"]


@pytest.mark.parametrize(
    ("command", "step", "call", "number", "code"),
    [
        ("align-policy", "policy.recipe:held_out_answers", 2, signal.SIGTERM, 143),
        ("train-reward", "reward.training.recipe:evaluate_final", 1, signal.SIGINT, 130),
        slow("align-policy", "policy.recipe:load_data", 1, signal.SIGTERM, 143),
        slow("align-policy", "policy.recipe:held_out_answers", 1, signal.SIGINT, 130),
        slow("align-policy", "rlhf.commands.align_policy:write_report", 1, signal.SIGINT, 130),
        slow("train-reward", "reward.training.recipe:load_data", 1, signal.SIGTERM, 143),
        slow("train-reward", "rlhf.commands.train_reward:write_report", 1, signal.SIGTERM, 143),
    ],
)
def test_a_signal_at(
    command: str,
    step: str,
    call: int,
    number: signal.Signals,
    code: int,
    request: pytest.FixtureRequest,
    rlhf_command: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = request.getfixturevalue("policy_config" if command == "align-policy" else "reward_config")
    run = tmp_path / "run"
    words = [command, config, "--output", run, *ONE_UPDATE[command]]
    with monkeypatch.context() as patch:
        send_before(step, call, number, patch)
        stopped = rlhf_command(*words)
    assert stopped.exit_code == code, stopped.output
    assert "--resume" in stopped.output
    assert "Traceback" not in stopped.output
    assert remains(run) == []
    resumed = rlhf_command(*words, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert (run / "eval.json").is_file() and (run / "report.html").is_file()


def send_before(step: str, call: int, number: int, patch: pytest.MonkeyPatch) -> None:
    """Send this process a signal before the given call of a function `MODULE:NAME`."""
    module, _, name = step.partition(":")
    owner = importlib.import_module(module)
    function, calls = getattr(owner, name), []

    def sending(*values: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), number)
            time.sleep(0.1)  # the handler runs before the next instruction of this thread
        return function(*values, **named)

    patch.setattr(owner, name, sending)
