"""The wheel holds all that the command line needs: it is built, unpacked and used from an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_wheel_in_an_empty_folder(tmp_path: Path) -> None:
    source, empty, target = tmp_path / "source", tmp_path / "empty", tmp_path / "target"
    empty.mkdir()
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("rlhf", "reward", "policy", "configs"):
        shutil.copytree(
            ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    build = [
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        str(tmp_path),
        str(source),
    ]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(target)
    environment = {**os.environ, "PYTHONPATH": str(target)}

    def rlhf(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "rlhf", *words]
        return subprocess.run(
            command, cwd=empty, env=environment, capture_output=True, text=True, check=False
        )

    where = subprocess.run(
        [
            sys.executable,
            "-c",
            "import rlhf, reward, policy; print(rlhf.__file__, reward.__file__, policy.__file__)",
        ],
        cwd=empty,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.count(str(target)) == 3
    assert "configs/policy/demo.yaml" in rlhf("configs").stdout.split()
    done = rlhf("train-reward", "configs/reward/demo.yaml", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "updates of" in done.stdout
