"""GPUs and machines: `8xH100-80GB`, `2x24GB`, `4x8xH200` -> count, memory, speed and price."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from rlhf.core.errors import ConfigError, did_you_mean

GIB = 2**30

PRICES_OF = "early 2026, on demand at low-price vendors"
"""Date and source of the prices below: an assumption, which `--price` overrides."""

NODE_LINK = 50.0
"""GB/s between a GPU and other machines: 400 Gb/s each. An assumption, usual for a node of 8 H100."""

PCIE = 25.0
"""GB/s between a GPU and host memory: PCIe 4.0 x 16 in practice. An assumption."""


@dataclass(frozen=True)
class Gpu:
    """One GPU; None where a value is not known."""

    name: str
    memory: int
    """Bytes that a process can have at most: what CUDA reports as total."""
    tflops: float | None = None
    """Dense bfloat16 matrix products with float32 sums, 10^12 a second, from the vendor's data sheet."""
    bandwidth: float | None = None
    """GB/s of its memory, from the data sheet."""
    link: float = PCIE
    """GB/s to its neighbours in the machine, in one direction."""
    price: float | None = None
    """US dollars an hour, see `PRICES_OF`."""


def _known(name: str, gib: float, tflops: float, bandwidth: float, price: float, link: float = PCIE) -> Gpu:
    return Gpu(name, int(gib * GIB), tflops, bandwidth, link, price)


GPUS = {
    gpu.name: gpu
    for gpu in (
        _known("RTX3090-24GB", 23.6, 71, 936, 0.25),
        _known("RTX4090-24GB", 23.5, 165, 1008, 0.40),
        _known("RTX5090-32GB", 31.3, 209, 1792, 0.75),
        _known("L4-24GB", 22.0, 121, 300, 0.45),
        _known("A10G-24GB", 22.0, 70, 600, 0.75),
        _known("A6000-48GB", 47.4, 155, 768, 0.50),
        _known("L40S-48GB", 44.4, 362, 864, 0.85),
        _known("A100-40GB", 39.4, 312, 1555, 1.20, link=300),
        _known("A100-80GB", 79.2, 312, 2039, 1.50, link=300),
        _known("H100-80GB", 79.1, 989, 3350, 2.70, link=450),
        _known("H200-141GB", 139.7, 989, 4800, 3.60, link=450),
        _known("B200-180GB", 178.0, 2250, 7700, 6.00, link=900),
    )
}
"""Known GPUs. Memory is the total that CUDA reports (with ECC where that is the default), as published by
users; it varies by a few tenths of a GiB with driver and board."""


@dataclass(frozen=True)
class Cluster:
    """Machines with equal GPUs."""

    gpu: Gpu
    per_node: int
    nodes: int = 1

    @property
    def count(self) -> int:
        """GPUs of all machines."""
        return self.per_node * self.nodes

    @property
    def link(self) -> float:
        """GB/s of the slowest link between GPUs."""
        return self.gpu.link if self.nodes == 1 else min(self.gpu.link, NODE_LINK)

    def __str__(self) -> str:
        nodes = f"{self.nodes}x" if self.nodes > 1 else ""
        return f"{nodes}{self.per_node}x{self.gpu.name}"


def parse_gpus(text: str, price: float | None = None) -> Cluster:
    """Parse `[NODES x] COUNT x GPU`, where GPU is a known name (`H100`) or a plain size (`24GB`).

    In a plain size a GB is 10^9 bytes, so a GPU of 24 GB has 22.4 GiB; its speed is not known.

    Raises:
        ConfigError: the name is unknown, or a size or count is out of range.
    """
    parsed = re.fullmatch(
        r"(?:([0-9]{1,6})\s*[x*]\s*)?(?:([0-9]{1,6})\s*[x*]\s*)?(\S+)", text.strip().lower()
    )
    if parsed is None or re.match(r"-?[0-9]+[x*]", parsed[3]):
        raise ConfigError(
            f"--gpus {text!r} cannot be read.",
            allowed="COUNTxGPU or NODESxCOUNTxGPU",
            fix="--gpus 8xH100-80GB",
        )
    counts, name = [count for count in parsed.groups()[:2] if count], text.strip()[parsed.start(3) :]
    numbers = [int(count) for count in counts]
    if 0 in numbers:
        raise ConfigError(
            f"--gpus {text!r} has a count of 0.", allowed="counts from 1", fix=f"--gpus 1x{name}"
        )
    gpu = _find(name)
    if price is not None:
        gpu = replace(gpu, price=price)
    nodes, per_node = ([1, 1, *numbers])[-2:]
    if per_node > 16:
        raise ConfigError(
            f"--gpus {text!r} has {per_node} GPUs in one machine.",
            allowed="at most 16 in a machine; several machines are NODESxCOUNTxGPU",
            fix=f"--gpus {-(-per_node // 8)}x8x{gpu.name}",
        )
    return Cluster(gpu, per_node, nodes)


def _find(name: str) -> Gpu:
    size = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(GB|GIB|G)", name, flags=re.IGNORECASE)
    if size:
        unit = GIB if size[2].lower() == "gib" else 10**9
        memory = float(size[1]) * unit
        if not 1e9 <= memory <= 1e12:
            raise ConfigError(
                f"--gpus: {name} is not a size of a GPU.",
                allowed="sizes from 1GB to 1000GB",
                fix="--gpus 1x24GB",
            )
        return Gpu(f"{size[1]}{'GiB' if unit == GIB else 'GB'}", int(memory))
    wanted = name.upper()
    matches = [
        gpu for known, gpu in GPUS.items() if wanted in (known.upper(), known.upper().partition("-")[0])
    ]
    if not matches:
        raise ConfigError(
            f"--gpus: the GPU {name!r} is not known.{did_you_mean(wanted, GPUS)}",
            allowed=f"{', '.join(GPUS)}, or a plain size",
            fix="--gpus 1x48GB",
        )
    # A name with two sizes, such as A100, is the smaller one; the larger is named in full.
    return min(matches, key=lambda gpu: gpu.memory)
