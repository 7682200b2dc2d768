"""The built wheel, installed into an empty environment and used from an empty folder.

The environment sees the packages that the wheel requires, but neither the repository nor its editable
installation.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN = "import policy, reward, rlhf; print(*(module.__file__ for module in (policy, reward, rlhf)))"
PAGES = (
    "from rlhf.annotate.app import FILES, Settings, build_app; from rlhf.annotate.store import Store; "
    "from rlhf.web.chat import build_app as chat; build_app(Store('a.db'), Settings()); chat(None, 'token')"
)
"""Both pages read their packaged files."""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    source, target = folder / "source", folder / "environment"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("rlhf", "reward", "policy", "configs"):
        shutil.copytree(
            ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    pip = [sys.executable, "-m", "pip"]
    offline = ["-q", "--no-deps", "--no-index"]
    build = [*pip, "wheel", *offline, "--no-build-isolation", "-w", str(folder), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    venv.create(target)
    inside = {"base": str(target), "platbase": str(target)}
    # A path in a .pth file brings the packages, and not the .pth file of the editable installation.
    packages = Path(sysconfig.get_path("purelib", vars=inside))
    (packages / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [*pip, "--python", str(target / "bin" / "python"), "install", *offline]
    subprocess.run([*install, str(next(folder.glob("*.whl")))], check=True, capture_output=True)
    return target


@pytest.fixture
def run(environment: Path, tmp_path: Path) -> Callable[..., str]:
    """Run a program of the environment in an empty folder; returns what it printed."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def program(name: str, *words: str) -> str:
        done = subprocess.run(
            [str(environment / "bin" / name), *words],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return program


@pytest.mark.slow
def test_the_wheel_works_without_the_repository(
    environment: Path, run: Callable[..., str], tmp_path: Path
) -> None:
    assert run("python", "-c", RUN).count(str(environment)) == 3
    assert "configs/policy/demo.yaml" in run("rlhf", "configs").split()
    assert "updates of" in run("rlhf", "train-reward", "configs/reward/demo.yaml", "--dry-run")
    assert "Rows" in run("rlhf", "inspect", "configs/reward/demo.yaml"), "the demo's data and tokenizer"
    run("rlhf", "configs", "--copy", "mine")
    assert (tmp_path / "mine" / "reward" / "demo.yaml").is_file()
    run("python", "-c", PAGES)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.5}\n')
    run("rlhf", "report", "run")
    assert "<!DOCTYPE html>" in (tmp_path / "run" / "report.html").read_text("utf-8")
