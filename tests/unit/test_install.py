"""Locks and the Makefile: macOS has no vLLM, and its lock no other versions than the tests ran with."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / f"{name}.txt").read_text("utf-8").splitlines()
    found = {}
    for line in lines:
        if "==" in line and not line.startswith("#"):
            name, version = line.partition(" ;")[0].split("==")
            found[name] = version
    return found


def test_the_lock_of_macos_is_a_part_of_the_one_that_ran() -> None:
    macos, cpu = pins("macos"), pins("cpu")
    assert not [name for name in macos if name.startswith("vllm")]
    assert {name for name, version in macos.items() if cpu.get(name) != version} <= {"appnope"}
    assert {"torch", "trl", "transformers", "peft", "bitsandbytes"} <= macos.keys()


def test_intels_libraries_are_not_for_aarch64() -> None:
    """They have no wheels there; everything else of the lock has."""
    lines = (ROOT / "requirements" / "cpu.txt").read_text("utf-8").splitlines()
    intel = [line for line in lines if line.startswith("intel-")]
    assert intel and all(line.endswith('; platform_machine != "aarch64"') for line in intel)


def test_the_wheel_has_every_config() -> None:
    """A package of data is named in pyproject.toml folder by folder."""
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    found = set[Path]()
    for package, patterns in packaged.items():
        if package.startswith("rlhf.configs"):
            folder = ROOT.joinpath("configs", *package.split(".")[2:])
            found |= {file for pattern in patterns for file in folder.glob(pattern)}
    assert found == {file for file in (ROOT / "configs").rglob("*") if file.is_file()}


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(("system", "lock"), [("Linux", "cpu"), ("Darwin", "macos")])
def test_the_demo_on_macos_samples_with_transformers_and_says_so(
    system: str, lock: str, tmp_path: Path
) -> None:
    """With a `uname` that names the system."""
    uname = tmp_path / "uname"
    uname.write_text(f"#!/bin/sh\necho {system}\n")
    uname.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    words = ["make", "--dry-run", "--always-make", "demo"]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert f"--requirement requirements/{lock}.txt" in done.stdout
    assert ("rollouts.engine=transformers" in done.stdout) is (system == "Darwin")
    assert ("There is no vLLM for macOS" in done.stdout) is (system == "Darwin")


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_a_lock_lacks_what_its_file_leaves_out(name: str) -> None:
    lines = (ROOT / "requirements" / f"{name}.without.txt").read_text("utf-8").splitlines()
    left_out = {line for line in lines if line and not line.startswith("#")}
    assert left_out
    assert not left_out & pins(name).keys()
    assert f"--excludes requirements/{name}.without.txt" in (ROOT / "Makefile").read_text("utf-8")
