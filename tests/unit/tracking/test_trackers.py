"""What trackers receive: one run across resumes, our metric names, samples, the page, and nothing else."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf.config.policy import PolicyConfig
from rlhf.core.errors import ConfigError
from rlhf.distributed import processes
from rlhf.runs.folder import RunFolder
from rlhf.tracking.session import open_run
from rlhf.tracking.trackers import SAMPLE_CHARACTERS, SAMPLE_ROWS, Trackers
from tests.unit.tracking.fakes import Recorder, fake_trackio, fake_wandb


def config_of(folder: Path, track: Any) -> PolicyConfig:
    return PolicyConfig.model_validate(
        {"output": str(folder), "reward": "a/reward", "data": {"prompts": [{"path": "demo"}]}, "track": track}
    )


@pytest.fixture
def trackio(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return fake_trackio(monkeypatch)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return fake_wandb(monkeypatch)


def run_of(config: PolicyConfig, *, resume: bool = False) -> RunFolder:
    return RunFolder.create(config.output, config, resume=resume, command="align-policy")


def part(config: PolicyConfig, steps: range, *, resume: bool = False) -> None:
    """A part of a run: metrics of some updates, written and sent as a recipe does."""
    with run_of(config, resume=resume) as run, Trackers(config) as track:
        track.open(run)
        run.truncate(steps.start - 1)
        for step in steps:
            run.metrics(step, {"kl/mean": 0.5 * step, "stage": "pairs"})
            track.metrics(step, {"kl/mean": 0.5 * step, "stage": "pairs"})


def test_metrics_keep_their_names_and_steps(trackio: Recorder, tmp_path: Path) -> None:
    part(config_of(tmp_path, "trackio"), range(1, 3))
    assert trackio.of("log") == [(({"kl/mean": 0.5},), {"step": 1}), (({"kl/mean": 1.0},), {"step": 2})]
    assert [name for name, _, _ in trackio.calls] == ["init", "config", "log", "log", "finish"]


def test_a_resumed_run_is_one_run_and_no_step_is_sent_twice(trackio: Recorder, tmp_path: Path) -> None:
    config = config_of(tmp_path, "trackio")
    part(config, range(1, 5))
    part(config, range(3, 7), resume=True)  # from a checkpoint two updates back
    first, second = (kwargs for _, kwargs in trackio.of("init"))
    assert (first["name"], first["resume"]) == (second["name"], "allow")
    assert [kwargs["step"] for _, kwargs in trackio.of("log")] == [1, 2, 3, 4, 5, 6]


def test_runs_of_the_same_folder_name_are_two_runs(trackio: Recorder, tmp_path: Path) -> None:
    for parent in ("a", "b"):
        part(config_of(tmp_path / parent / "run", "trackio"), range(1, 2))
    assert len({kwargs["name"] for _, kwargs in trackio.of("init")}) == 2


def test_wandb_is_offline_by_default_and_sends_neither_console_nor_code(
    wandb: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    config = config_of(tmp_path, "wandb")
    part(config, range(1, 2))
    [(_, init)] = wandb.of("init")
    assert init["mode"] == "offline"
    assert init["id"] == json.loads((tmp_path / "tracking.json").read_text())["id"]
    assert init["settings"]["console"] == "off" and not init["settings"]["save_code"]
    assert init["settings"]["finish_timeout"] > 0, "0 waits for a network without an end"
    assert Path(init["dir"]).is_relative_to(tmp_path)
    assert wandb.of("log") == [(({"kl/mean": 0.5, "train/global_step": 1},), {"step": None})]
    monkeypatch.setenv("WANDB_MODE", "online")
    part(config, range(2, 3), resume=True)
    assert wandb.of("init")[1][1]["mode"] == "online"


def test_some_samples_are_a_table_and_the_page_an_artifact(
    trackio: Recorder, wandb: Recorder, tmp_path: Path
) -> None:
    config = config_of(tmp_path, ["trackio", "wandb"])
    page = tmp_path / "report.html"
    with run_of(config) as run, Trackers(config) as track:
        track.open(run)
        for step in range(1, 12):
            prompt = [{"role": "user", "content": "Hello"}]
            row = {"step": step, "prompt": prompt, "answer": "x" * 9999, "reward": 1.5, "gold": None}
            track.samples([row] * 40)
        page.write_text("<html></html>")
        track.report(page)
    for tracker in (trackio, wandb):
        tables = [args[0]["samples"] for args, _ in tracker.of("log") if "samples" in args[0]]
        assert len(tables) == 2  # updates 1 and 10
        assert tables[0].columns == ["prompt", "answer", "reward", "gold"]
        assert len(tables[0].data) == SAMPLE_ROWS
        assert tables[0].data[0] == ["user: Hello", "x" * SAMPLE_CHARACTERS, 1.5, None]
    assert trackio.of("log_artifact")[0][0] == (page,)
    assert wandb.of("log_artifact")[0][0][0].files == [page]


@pytest.mark.parametrize("call", ["init", "log", "finish"])
def test_a_failing_tracker_is_reported_once_and_the_others_continue(
    trackio: Recorder,
    wandb: Recorder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    call: str,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "abcdef123456")
    wandb.fails[call] = ConnectionError("no route to https://me:hunter2@host with abcdef123456")
    part(config_of(tmp_path, ["wandb", "trackio"]), range(1, 4))
    warnings = capsys.readouterr().err
    assert warnings.count("Warning") == 1
    assert "wandb" in warnings and "ConnectionError" in warnings
    assert "hunter2" not in warnings and "abcdef123456" not in warnings
    assert len(trackio.of("log")) == 3 and len(trackio.of("finish")) == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_only_the_main_process_sends(
    trackio: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "is_main", lambda: False)
    config = config_of(tmp_path, "trackio")
    with Trackers(config) as track:
        track.open(RunFolder(tmp_path, None, resumed=False))
        track.metrics(1, {"a": 1.0})
    assert trackio.calls == []


def test_a_package_that_is_not_installed_is_refused_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    installed = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "mlflow" else installed(name)
    )
    with pytest.raises(ConfigError) as refused:
        Trackers(config_of(tmp_path, "mlflow"))
    assert "mlflow" in refused.value.found and "pip install mlflow-skinny" in refused.value.fix


def test_no_tracker_writes_nothing(tmp_path: Path) -> None:
    part(config_of(tmp_path, None), range(1, 2))
    assert not (tmp_path / "tracking").exists() and not (tmp_path / "tracking.json").exists()


def test_trackers_of_the_caller_stay_open(trackio: Recorder, tmp_path: Path) -> None:
    config = config_of(tmp_path, "trackio")
    trackers = Trackers(config)
    with open_run(config, "train-reward", resume=False, trackers=trackers) as (run, track, _):
        track.open(run)
    assert trackio.of("finish") == []
    trackers.close()
    assert len(trackio.of("finish")) == 1


def test_a_resumed_run_may_add_a_tracker(trackio: Recorder, tmp_path: Path) -> None:
    part(config_of(tmp_path, []), range(1, 2))
    part(config_of(tmp_path, ["trackio"]), range(2, 3), resume=True)
    assert [kwargs["step"] for _, kwargs in trackio.of("log")] == [2]
