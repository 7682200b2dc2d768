"""The campaigns on a small scale: each script runs, finds no fault, and would notice one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.campaigns import busy, faulty, hosts, machines, slurm
from tests.campaigns.running import half_written

FOLDER = Path(__file__).parent
RUN = "/runs/mine"


@pytest.mark.parametrize(
    ("event", "arguments", "kind"),
    [
        ("open", (f"{RUN}/metrics.jsonl", "ab", 0), "open metrics.jsonl"),
        ("open", (f"{RUN}/.config.yaml.0123abcd.half-written", "wb", 0), "open .config.yaml.X.half-written"),
        ("os.rename", (f"{RUN}/x", f"{RUN}/checkpoints/step-12", -1, -1), "os.rename checkpoints/step-N"),
        ("open", (f"{RUN}/metrics.jsonl", "r", 0), ""),
        ("open", ("/runs/mine2/metrics.jsonl", "w", 0), ""),
        ("open", (5, "w", 0), ""),
        ("import", ("os",), ""),
    ],
)
def test_kinds_of_file_operations(event: str, arguments: tuple[Any, ...], kind: str) -> None:
    assert faulty.kind_of(event, arguments, RUN) == kind


def test_half_written_files_are_noticed(tmp_path: Path) -> None:
    for name in (
        "final/model",
        "checkpoints/.step-2.0123abcd.half-written",
        ".eval.json.0123abcd.half-written",
    ):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.touch()
    assert len(half_written(tmp_path)) == 2


def test_stated_and_true_seconds_left() -> None:
    lines = [
        (0.0, "update 1/4  loss 2  elapsed 0:01  time left unknown"),
        (10.0, "update 2/4  loss 2  elapsed 0:11  time left 0:20"),
        (25.0, "update 3/4  loss 2  elapsed 0:26  time left 1:00:05"),
        (40.0, "update 4/4  loss 2  elapsed 0:41"),
        (50.0, "item 1/9  elapsed 0:01  time left 0:10"),
    ]
    assert busy.estimates(lines) == [(2, 20.0, 30.0), (3, 3605.0, 15.0)]
    assert busy.within(20, 30) and not busy.within(19, 30) and busy.within(1, 0.2)


def test_a_difference_of_two_runs_is_noticed(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    for name, loss, weight in (("a", 1.0, 1.0), ("b", 1.00001, 1.0), ("c", 1.001, 1.0), ("d", 1.0, 1.001)):
        final = tmp_path / name / "final"
        final.mkdir(parents=True)
        row = {"step": 1, "loss/total": loss, "time/update": loss}
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        save_file({"w": torch.tensor([weight])}, final / "adapter_model.safetensors")
    differences = [machines.difference(tmp_path / name, tmp_path / "a") for name in "abcd"]
    assert differences[:2] == ["", ""]
    assert "loss/total" in differences[2] and "weights" in differences[3]


def script(name: str, folder: Path, *options: str) -> None:
    subprocess.run(
        [sys.executable, str(FOLDER / name), "--output", str(folder / "campaign"), *options], check=True
    )


@pytest.mark.slow
def test_kills_at_writes(tmp_path: Path) -> None:
    script("writes.py", tmp_path, "--case", "train-reward", "--only", "os.rename", "--only", "metrics.jsonl")


@pytest.mark.slow
def test_random_kills(tmp_path: Path) -> None:
    script("kills.py", tmp_path, "--kills", "3", "--case", "align-policy reinforce none x1")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="mounts and signals of Linux")
def test_conditions(tmp_path: Path) -> None:
    script("conditions.py", tmp_path, "--signals", "1")
    results = json.loads((tmp_path / "campaign" / "conditions.json").read_text())
    assert {result["what"] for result in results} >= {"clock", signal.SIGINT.name, signal.SIGTERM.name}


@pytest.mark.slow
@pytest.mark.parametrize(("module", "file"), [(hosts, "machines.py"), (slurm, "slurm.py")])
def test_several_machines(module: ModuleType, file: str, tmp_path: Path) -> None:
    if reason := module.missing():
        pytest.skip(reason)
    script(file, tmp_path)
