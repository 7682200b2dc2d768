"""An interrupted and resumed run equals an uninterrupted one: every loss, reward and KL, bit by bit."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from resuming import Killed, assert_same_run, figures, killed_after
from safetensors import SafetensorError
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from rlhf import cli
from rlhf.runs.folder import RunFolder

Rlhf = Callable[..., Result]


def slow(value: Any) -> Any:
    return pytest.param(value, marks=pytest.mark.slow)


def start(words: list[str]) -> Result:
    return CliRunner().invoke(cli.app, words, prog_name="rlhf")


def policy_words(config: Path, run: Path) -> list[str]:
    """Five updates with different learning rates, so that a wrong one after resume changes the result."""
    return ["align-policy", str(config), "steps=5", "optimizer.warmup_steps=6", "--output", str(run)]


@pytest.fixture(scope="module")
def unbroken_reward(reward_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "reward"
    result = start(["train-reward", str(reward_config), "--output", str(folder)])
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def unbroken_policy(policy_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "policy"
    result = start(policy_words(policy_config, folder))
    assert result.exit_code == 0, result.output
    return folder


def interrupt(step: int, words: list[str]) -> None:
    with killed_after(step):
        start(words)


# Updates 1 to 5 are stage one, 6 to 9 stage two; checkpoints after 2, 4, 5 (the end of its stage), 7 and 9.
@pytest.mark.parametrize("step", [6, slow(8)])
def test_reward_run(
    reward_config: Path,
    unbroken_reward: Path,
    tmp_path: Path,
    step: int,
) -> None:
    words = ["train-reward", str(reward_config), "--output", str(tmp_path / "run")]
    interrupt(step, words)
    assert not (tmp_path / "run" / "final").exists()
    assert figures(tmp_path / "run") == figures(unbroken_reward)[: len(figures(tmp_path / "run"))]
    result = start([*words, "--resume"])
    assert result.exit_code == 0, result.output
    assert_same_run(tmp_path / "run", unbroken_reward)
    ours, theirs = (
        json.loads((run / "eval.json").read_text()) for run in (tmp_path / "run", unbroken_reward)
    )
    assert ours == theirs


EXPO = ["expo={weak: ratings, strong: pairs, factors: [1.25, 1.5], refine: 0.05}"]


@pytest.fixture(scope="module")
def unbroken_expo(reward_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "expo"
    result = start(["train-reward", str(reward_config), *EXPO, "--output", str(folder)])
    assert result.exit_code == 0, result.output
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("when", ["in stage one", "in stage two", "in the search"])
def test_reward_run_with_extrapolation(
    reward_config: Path,
    unbroken_expo: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    when: str,
) -> None:
    run = tmp_path / "run"
    words = ["train-reward", str(reward_config), *EXPO, "--output", str(run)]
    if when == "in the search":
        from reward.training import expo

        calls = iter(range(3))
        judge = expo.judge_pairs

        def judge_twice(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == 2:
                raise Killed
            return judge(*args, **kwargs)

        monkeypatch.setattr(expo, "judge_pairs", judge_twice)
        with pytest.raises(Killed):
            start(words)
        monkeypatch.setattr(expo, "judge_pairs", judge)
        assert (run / "stages" / "pairs").exists() and not (run / "expo.json").exists()
    else:
        interrupt({"in stage one": 3, "in stage two": 8}[when], words)
    assert not (run / "final").exists()
    result = start([*words, "--resume"])
    assert result.exit_code == 0, result.output
    assert_same_run(run, unbroken_expo)
    assert (run / "expo.json").read_text() == (unbroken_expo / "expo.json").read_text()
    for stage in ("ratings", "pairs"):
        weights = Path("stages", stage, "adapter_model.safetensors")
        assert (run / weights).read_bytes() == (unbroken_expo / weights).read_bytes()


def test_policy_run(
    policy_config: Path,
    unbroken_policy: Path,
    tmp_path: Path,
) -> None:
    interrupted_and_resumed(policy_words(policy_config, tmp_path / "run"), unbroken_policy)


@pytest.mark.slow
def test_policy_run_with_full_fine_tuning(policy_config: Path, tmp_path: Path) -> None:
    overrides = ["adapter=null", "optimizer.learning_rate=1.0e-3"]
    unbroken = tmp_path / "unbroken"
    result = start([*policy_words(policy_config, unbroken), *overrides])
    assert result.exit_code == 0, result.output
    interrupted_and_resumed([*policy_words(policy_config, tmp_path / "run"), *overrides], unbroken)


@pytest.mark.slow
def test_policy_run_with_a_critic_that_started_from_another_policy(
    policy_config: Path,
    unbroken_policy: Path,
    tmp_path: Path,
) -> None:
    """Adapter, head and moments of the critic, with two passes per update; the reference is loaded again."""
    overrides = ["algorithm={name: ppo, epochs: 2, unfinished: keep}", f"start={unbroken_policy / 'final'}"]
    unbroken = tmp_path / "unbroken"
    result = start([*policy_words(policy_config, unbroken), *overrides])
    assert result.exit_code == 0, result.output
    assert figures(unbroken)[0]["kl/abs_mean"] == 0.0
    interrupted_and_resumed([*policy_words(policy_config, tmp_path / "run"), *overrides], unbroken)
    trained = load_file(unbroken / "checkpoints" / "step-5" / "trainable.safetensors")
    resumed = load_file(tmp_path / "run" / "checkpoints" / "step-5" / "trainable.safetensors")
    assert sum(".critic." in name or "value_head" in name for name in trained) == 2 * 7 * 2 + 1
    assert all((trained[name] == resumed[name]).all() for name in trained)


def interrupted_and_resumed(words: list[str], unbroken: Path) -> None:
    run = Path(words[words.index("--output") + 1])
    interrupt(5, words)  # checkpoints after 2 and 4
    result = start([*words, "--resume"])
    assert result.exit_code == 0, result.output
    assert_same_run(run, unbroken)
    for name in ("samples.jsonl", "eval.json"):
        assert (run / name).read_text() == (unbroken / name).read_text()


def test_policy_run_that_resumes_with_more_updates(
    policy_config: Path, unbroken_policy: Path, tmp_path: Path
) -> None:
    words = policy_words(policy_config, tmp_path / "run")
    for overrides in (["steps=3"], ["--resume"]):
        result = start([*words, *overrides])
        assert result.exit_code == 0, result.output
    assert_same_run(tmp_path / "run", unbroken_policy)


def test_a_corrupt_checkpoint_is_skipped_with_a_message(
    policy_config: Path, unbroken_policy: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = policy_words(policy_config, run)
    interrupt(5, words)
    assert sorted(folder.name for folder in (run / "checkpoints").iterdir()) == ["model", "step-2", "step-4"]
    weights = run / "checkpoints" / "step-4" / "trainable.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # one bit of one number
    weights.write_bytes(content)
    result = start([*words, "--resume"])
    assert result.exit_code == 0, result.output
    assert "step-4 is corrupt" in result.output
    assert_same_run(run, unbroken_policy)


def test_without_a_complete_checkpoint_the_run_starts_again(
    policy_config: Path, unbroken_policy: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = policy_words(policy_config, run)
    interrupt(3, words)
    (run / "checkpoints" / "step-2" / "manifest.json").unlink()
    result = start([*words, "--resume"])
    assert result.exit_code == 0, result.output
    assert "step-2 is corrupt" in result.output
    assert_same_run(run, unbroken_policy)


@pytest.mark.parametrize(
    ("module", "write", "good"),
    # A checkpoint has three files: the first of the second one fails. peft saves what checkpoints share, then
    # the result.
    [("rlhf.runs.checkpoints", "save_file", 3), ("peft.peft_model", "safe_save_file", 1)],
    ids=["at a checkpoint", "at the result"],
)
def test_a_full_disk_is_reported_and_costs_no_more_than_a_kill(
    policy_config: Path,
    unbroken_policy: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    module: str,
    write: str,
    good: int,
) -> None:
    run = tmp_path / "run"
    words = policy_words(policy_config, run)
    original, calls = getattr(importlib.import_module(module), write), iter(range(100))

    def full(*args: Any, **kwargs: Any) -> None:
        if next(calls) >= good:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        original(*args, **kwargs)

    monkeypatch.setattr(f"{module}.{write}", full)
    result = start(words)
    monkeypatch.undo()
    assert result.exit_code == 1, result.output
    assert result.output.count("The disk is full.") == 1
    assert "Traceback" not in result.output
    assert not (run / "final").exists()
    unfinished = [file.name for file in run.rglob("*") if file.name.endswith(".half-written")]
    assert unfinished == []
    result = start([*words, "--resume"])
    assert result.exit_code == 0, result.output
    assert_same_run(run, unbroken_policy)


def test_reward_run_killed_by_sigkill(reward_config: Path, unbroken_reward: Path, tmp_path: Path) -> None:
    """A real process and a real SIGKILL, at an arbitrary moment."""
    run = tmp_path / "run"
    words = ["train-reward", str(reward_config), "--output", str(run)]
    process = subprocess.Popen(
        [sys.executable, "-m", "rlhf.cli", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list((run / "checkpoints").glob("step-*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (run / "final").exists()
    result = start([*words, "--resume"])
    assert result.exit_code == 0, result.output
    assert_same_run(run, unbroken_reward)
    unfinished = [
        file.name for file in run.rglob("*") if file.name.endswith((".half-written", ".unfinished"))
    ]
    assert unfinished == []


@pytest.fixture
def signal_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], pytest.MonkeyPatch]:
    """The next run gets a signal after it has logged this update, before the end of the next one."""

    def arm(step: int, number: int) -> pytest.MonkeyPatch:
        log = RunFolder.metrics

        def metrics(self: RunFolder, now: int, values: Any) -> None:
            log(self, now, values)
            if now == step:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(RunFolder, "metrics", metrics)
        return monkeypatch

    return arm


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_a_policy_run_after_its_update_with_a_checkpoint(
    policy_config: Path,
    unbroken_policy: Path,
    signal_at: Callable[[int, int], pytest.MonkeyPatch],
    tmp_path: Path,
    number: int,
    code: int,
) -> None:
    words, run = policy_words(policy_config, tmp_path / "run"), tmp_path / "run"
    handlers = [signal.getsignal(code) for code in (signal.SIGTERM, signal.SIGINT)]
    armed = signal_at(2, number)
    result = start(words)
    armed.undo()
    assert result.exit_code == code, result.output
    assert "--resume" in result.output and "update 3" in result.output
    assert len(figures(run)) == 3 and not (run / "final").exists()
    assert sorted(entry.name for entry in (run / "checkpoints").iterdir()) == ["model", "step-2", "step-3"]
    assert not [entry for entry in run.rglob("*") if entry.name.endswith(".half-written")]
    assert [signal.getsignal(code) for code in (signal.SIGTERM, signal.SIGINT)] == handlers
    result = start([*words, "--resume"])
    assert result.exit_code == 0, result.output
    assert_same_run(run, unbroken_policy)


def test_a_signal_stops_a_reward_run_within_its_stage(
    reward_config: Path,
    unbroken_reward: Path,
    signal_at: Callable[[int, int], pytest.MonkeyPatch],
    tmp_path: Path,
) -> None:
    words = ["train-reward", str(reward_config), "--output", str(tmp_path / "run")]
    armed = signal_at(2, signal.SIGTERM)
    result = start(words)
    armed.undo()
    assert result.exit_code == 143, result.output
    assert (tmp_path / "run" / "checkpoints" / "step-3").exists()
    assert start([*words, "--resume"]).exit_code == 0
    assert_same_run(tmp_path / "run", unbroken_reward)


def test_changed_prompts_are_refused_and_moved_ones_are_not(policy_config: Path, tmp_path: Path) -> None:
    def prompts(name: str, *extra: str) -> Path:
        file = tmp_path / name
        texts = [f"Say {number}." for number in range(20)] + list(extra)
        file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
        return file

    def words(file: Path) -> list[str]:
        return [*policy_words(policy_config, tmp_path / "run"), f"data.prompts=[{{path: {file}}}]"]

    interrupt(3, words(prompts("prompts.jsonl")))
    before = figures(tmp_path / "run")
    prompts("prompts.jsonl", "Say something else.")
    refused = start([*words(tmp_path / "prompts.jsonl"), "--resume"])
    assert refused.exit_code == 2 and str(tmp_path / "prompts.jsonl") in refused.output
    assert figures(tmp_path / "run") == before
    resumed = start([*words(prompts("moved.jsonl")), "--resume"])
    assert resumed.exit_code == 0, resumed.output
    assert [row["step"] for row in figures(tmp_path / "run")] == [1, 2, 3, 4, 5]
