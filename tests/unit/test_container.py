"""The container file fits the GPU lock and the Makefile: it was never built by us, so what can be compared
is."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_cuda_python_and_target_are_those_of_the_lock() -> None:
    docker = (ROOT / "Dockerfile").read_text("utf-8")
    lock = (ROOT / "requirements" / "gpu.txt").read_text("utf-8")
    image = re.search(r"^FROM nvidia/cuda:(\d+)\.(\d+)\.\d+-devel", docker, re.MULTILINE)
    toolkit = re.search(r"^cuda-toolkit==(\d+)\.(\d+)\.", lock, re.MULTILINE)
    assert image is not None
    assert toolkit is not None
    assert image.groups() == toolkit.groups()
    python = re.search(r"--python-version (\d\.\d+)", (ROOT / "Makefile").read_text("utf-8"))
    assert python is not None
    assert f"make venv BACKEND=gpu PYTHON=python{python[1]}" in docker
    assert f"python{python[1]}-venv" in docker


def test_the_lock_has_the_extra_for_gpus() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lock = (ROOT / "requirements" / "gpu.txt").read_text("utf-8").splitlines()
    assert [line for line in project["optional-dependencies"]["gpu"] if line not in lock] == []
