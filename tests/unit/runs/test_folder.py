from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from rlhf.config.policy import PolicyConfig
from rlhf.core.errors import ConfigError, DataError, OutputError
from rlhf.runs import files as runs
from rlhf.runs.files import atomic_folder, atomic_write_text
from rlhf.runs.folder import RunFolder


class Stage(BaseModel):
    name: str = "a"
    epochs: float = 1.0
    max_steps: int | None = None


class Config(BaseModel):
    output: Path = Path("runs/x")
    steps: int = 10
    rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.98)
    stages: list[Stage] = [Stage()]


def open_run(path: Path, config: BaseModel | None = None, *, resume: bool = False) -> RunFolder:
    return RunFolder.create(path, config or Config(), resume=resume, command="train-reward")


def lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_a_new_run_writes_its_config_and_environment(tmp_path: Path) -> None:
    with open_run(tmp_path / "deep" / "run") as run:
        assert not run.resumed
        assert Config.model_validate(yaml.safe_load((run.path / "config.yaml").read_text())) == Config()
        assert run.checkpoints.is_dir()
        assert (run.checkpoints, run.final) == (run.path / "checkpoints", run.path / "final")
        facts = run.read_json("environment.json")
    assert facts["command"] == "train-reward"
    assert facts["versions"]["torch"].startswith("2.")
    assert facts["cpus"] == os.cpu_count()
    assert names(tmp_path / "deep" / "run") == {".lock", "config.yaml", "environment.json", "checkpoints"}


def test_the_environment_contains_no_names_and_no_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "very-secret-value")
    open_run(tmp_path / "run").close()
    text = (tmp_path / "run" / "environment.json").read_text()
    assert "very-secret-value" not in text
    assert os.uname().nodename not in text
    assert set(json.loads(text)) == {
        *("command", "started", "python", "platform", "cpus", "processes", "revision", "versions", "resumed")
    }


def test_versions_are_read_without_importing(tmp_path: Path) -> None:
    code = (
        "import sys; from rlhf.runs.environment import environment; environment('x');"
        "assert not {'torch', 'trl', 'vllm', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_revision_is_none_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with open_run(tmp_path / "run") as run:
        assert run.read_json("environment.json")["revision"] is None


def test_a_folder_in_use_is_refused_even_on_resume_and_free_after_close(tmp_path: Path) -> None:
    first = open_run(tmp_path)
    for resume in (False, True):
        with pytest.raises(OutputError, match=str(os.getpid())) as caught:
            open_run(tmp_path, resume=resume)
        assert caught.value.exit_code == 2
        assert "--output" in caught.value.fix
    first.close()
    open_run(tmp_path, resume=True).close()


def test_an_orphaned_worker_does_not_keep_the_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    run, started, done = open_run(tmp_path), context.Event(), context.Event()
    worker = context.Process(target=lambda: (started.set(), done.wait()))
    worker.start()
    try:
        assert started.wait(10)
        with pytest.raises(OutputError, match=str(os.getpid())):
            open_run(tmp_path, resume=True)
        run._forget_lock()  # as the kernel does when the parent is killed
        open_run(tmp_path, resume=True).close()
    finally:
        done.set()
        worker.join()


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    open_run(tmp_path).close()
    with pytest.raises(OutputError, match=str(tmp_path)) as caught:
        open_run(tmp_path)
    assert "--resume" in caught.value.fix and "--output" in caught.value.fix
    open_run(tmp_path, resume=True).close()  # the refused run released the lock


def test_a_damaged_config_of_a_run_is_refused(tmp_path: Path) -> None:
    open_run(tmp_path).close()
    (tmp_path / "config.yaml").write_text("steps: [")
    with pytest.raises(ConfigError, match=r"config\.yaml is not valid YAML") as caught:
        open_run(tmp_path, resume=True)
    assert "--output" in caught.value.fix


@pytest.mark.parametrize("resume", [False, True])
def test_nothing_is_written_into_a_folder_that_is_not_a_run_folder(tmp_path: Path, *, resume: bool) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(OutputError, match="config.yaml" if resume else str(tmp_path)):
        open_run(tmp_path, resume=resume)
    assert names(tmp_path) == {"thesis.tex"}


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(OutputError, match=str(tmp_path / "run")):
        open_run(tmp_path / "run")


def test_resume_without_a_run_starts_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_run(tmp_path / "new", resume=True) as run:
        assert not run.resumed
    assert str(tmp_path / "new") in capsys.readouterr().out  # a note: a typo must not look like a resumed run
    with open_run(tmp_path / "new", resume=True) as run:
        assert run.resumed
    assert capsys.readouterr().out == ""


def test_resume_keeps_the_first_start_and_adds_the_second(tmp_path: Path) -> None:
    open_run(tmp_path).close()
    first = json.loads((tmp_path / "environment.json").read_text())
    with open_run(tmp_path, resume=True) as run:
        assert run.resumed
        facts = run.read_json("environment.json")
    assert [resume["command"] for resume in facts.pop("resumed")] == ["train-reward"]
    assert facts == {name: value for name, value in first.items() if name != "resumed"}


def test_a_resumed_run_may_be_longer(tmp_path: Path) -> None:
    open_run(tmp_path).close()
    longer = Config(steps=20, output=tmp_path, stages=[Stage(epochs=2, max_steps=5)])
    open_run(tmp_path, longer, resume=True).close()
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["steps"] == 20


def test_a_resumed_run_may_not_change_other_keys(tmp_path: Path) -> None:
    open_run(tmp_path).close()
    before = (tmp_path / "config.yaml").read_text()
    other = Config(rate=1e-3, betas=(0.9, 0.99), stages=[Stage(), Stage(name="b")])
    with pytest.raises(ConfigError) as caught:
        open_run(tmp_path, other, resume=True)
    assert set(re.findall(r"([\w.]+): was", caught.value.found)) == {"rate", "betas.1", "stages.1.name"}
    assert all(value in caught.value.found for value in ("0.0001", "0.001", "0.98", "0.99", '"b"'))
    assert str(tmp_path / "config.yaml") in caught.value.fix
    assert (tmp_path / "config.yaml").read_text() == before


def test_a_resumed_run_may_wait_longer_for_its_reward_servers(tmp_path: Path) -> None:
    """This is what the error of a server that was too slow says to do."""

    def config(waiting: dict[str, Any], judge: dict[str, Any]) -> PolicyConfig:
        server = {"server": "http://h", **waiting}
        first, other = ({"judge": {"url": "http://h", "model": m, **waiting, **judge}} for m in ("a", "b"))
        data = {"prompts": [{"path": "demo"}]}
        return PolicyConfig.model_validate(
            {"output": tmp_path, "reward": [server, first], "held_out_reward": other, "data": data}
        )

    open_run(tmp_path, config({}, {})).close()
    patient = {"concurrency": 2, "retries": 9, "dollars_per_million": [1, 2]}
    open_run(tmp_path, config({"timeout": 600, "token_env": "OTHER"}, patient), resume=True).close()
    with pytest.raises(ConfigError) as caught:
        open_run(tmp_path, config({}, {"max_tokens": 9}), resume=True)
    changed = set(re.findall(r"([\w.]+): was", caught.value.found))
    assert changed == {"reward.1.judge.max_tokens", "held_out_reward.judge.max_tokens"}


def test_a_key_newer_than_the_run_has_its_default(tmp_path: Path) -> None:
    class Newer(Config):
        added: int = 3

    open_run(tmp_path).close()
    open_run(tmp_path, Newer(), resume=True).close()
    with pytest.raises(ConfigError, match="added: .*3.*4"):
        open_run(tmp_path, Newer(added=4), resume=True)


def test_metrics_are_json_lines_and_non_finite_values_are_null(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.metrics(
            1, {"loss/total": 0.5, "loss/bt": float("nan"), "kl/sum": float("-inf"), "stage": "first"}
        )
        assert lines(tmp_path / "metrics.jsonl") == [
            {"step": 1, "loss/total": 0.5, "loss/bt": None, "kl/sum": None, "stage": "first"}
        ]


def test_samples_keep_their_text_and_need_a_step(tmp_path: Path) -> None:
    row = {
        "step": 2,
        "answer": "Grüße, 你好\n\ud800",
        "reward": float("inf"),
        "gold": None,
        "prompt": [{"role": "user"}],
    }
    with open_run(tmp_path) as run:
        run.samples([row])
        assert lines(tmp_path / "samples.jsonl") == [row | {"reward": None}]
        assert "你好" in (tmp_path / "samples.jsonl").read_text()
        with pytest.raises(KeyError):
            run.samples([{"answer": "x"}])


def test_truncate_drops_later_steps_and_an_incomplete_line(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        for step in (1, 2, 3):
            run.metrics(step, {"loss": step / 2})
        run.samples([{"step": 2}, {"step": 3}, {"step": 2}])
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 2, "lo')
        run.truncate(2)
        assert lines(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}]
        assert lines(tmp_path / "samples.jsonl") == [{"step": 2}, {"step": 2}]
        run.truncate(0)
        assert lines(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("incomplete", ['{"step": 2', '{"step": 2}', '{"step": 2\n', "\0\0\0"])
def test_resume_removes_an_incomplete_line_before_adding_others(tmp_path: Path, incomplete: str) -> None:
    with open_run(tmp_path) as run:
        run.metrics(1, {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(incomplete)
    with open_run(tmp_path, resume=True) as run:
        run.metrics(2, {"loss": 2.0})
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}]


def test_a_corrupt_line_in_the_middle_is_an_error_with_its_number(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 2}\n')
        with pytest.raises(OutputError, match=r"metrics\.jsonl:2 "):
            run.truncate(5)
        assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_json_is_valid_and_read_back(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.write_json("eval.json", {"a": [1.5, float("nan")], "b": (1, 2)})
        assert run.read_json("eval.json") == {"a": [1.5, None], "b": [1, 2]}
        with pytest.raises(OutputError, match=r"other\.json"):
            run.read_json("other.json")


def test_a_failed_write_leaves_only_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt"
    atomic_write_text(file, "old")

    def full(_: int) -> None:
        raise OSError("no space")

    monkeypatch.setattr(runs.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        atomic_write_text(file, "new")
    assert file.read_text() == "old"
    assert names(tmp_path) == {"a.txt"}


def test_a_file_gets_default_permissions(tmp_path: Path) -> None:
    (tmp_path / "default").touch()
    atomic_write_text(tmp_path / "a", "x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "default").stat().st_mode


def test_a_folder_is_written_completely_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "final"

    def fill(text: str, *, fail: bool) -> None:
        with atomic_folder(target) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / "a").write_text(text)
            assert not target.exists() or (target / "sub" / "a").read_text() == "first"
            if fail:
                raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        fill("never", fail=True)
    assert names(target.parent) == set()
    fill("first", fail=False)
    with pytest.raises(RuntimeError):
        fill("never", fail=True)
    assert (target / "sub" / "a").read_text() == "first"
    fill("second", fail=False)
    assert (target / "sub" / "a").read_text() == "second"
    assert names(target.parent) == {"final"}


def test_unfinished_files_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    open_run(tmp_path).close()
    unfinished = tmp_path / "checkpoints" / f".step-5.0a{runs.HALF_WRITTEN}"
    unfinished.mkdir()
    (unfinished / "weights").touch()
    (tmp_path / f".eval.json.0b{runs.HALF_WRITTEN}").touch()
    open_run(tmp_path, resume=True).close()
    assert names(tmp_path) == {".lock", "config.yaml", "environment.json", "checkpoints"}
    assert names(tmp_path / "checkpoints") == set()


def fail(path: Path, *, after_an_update: bool) -> None:
    with open_run(path) as run:
        run.write_json("drops.json", {})
        if after_an_update:
            run.metrics(1, {"loss/total": 1.0})
        raise DataError("no rows")


def test_a_user_error_before_the_first_update_leaves_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        fail(tmp_path / "run", after_an_update=False)
    assert names(tmp_path / "run") == set()
    open_run(tmp_path / "run").close()


def test_a_user_error_after_the_first_update_keeps_the_files(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        fail(tmp_path / "run", after_an_update=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_text().startswith('{"step": 1')


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
def test_files_of_a_folder_follow_the_umask(tmp_path: Path, mask: int, mode: int) -> None:
    """safetensors creates its files with mode 600, regardless of the umask."""
    import torch
    from safetensors.torch import save_file

    before = os.umask(mask)
    try:
        with atomic_folder(tmp_path / "final") as folder:
            save_file({"weight": torch.ones(2)}, folder / "adapter_model.safetensors")
            (folder / "card.json").write_text("{}")
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "final").iterdir()} == {mode}
