"""Cards and machines: `8xH100-80GB`, `2x24GB`, `4x8xH200` -> how many, how large, how fast, at what price."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from rlhf.core.errors import ConfigError, did_you_mean

GIB = 2**30

PRICES_OF = "early 2026, on demand at low-price vendors"
"""What the prices below are: an assumption to be overridden, not an offer."""

NODE_LINK = 50.0
"""GB/s a card gets to other machines: 400 Gb/s each, an assumption; a usual node of 8 H100 has that."""

PCIE = 25.0
"""GB/s between a card and its machine's memory: PCIe 4.0 x 16 in practice, an assumption."""


@dataclass(frozen=True)
class Card:
    """One GPU. `None` is not known."""

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


def _card(name: str, gib: float, tflops: float, bandwidth: float, price: float, link: float = PCIE) -> Card:
    return Card(name, int(gib * GIB), tflops, bandwidth, link, price)


CARDS = {
    card.name: card
    for card in (
        _card("RTX3090-24GB", 23.6, 71, 936, 0.25),
        _card("RTX4090-24GB", 23.5, 165, 1008, 0.40),
        _card("RTX5090-32GB", 31.3, 209, 1792, 0.75),
        _card("L4-24GB", 22.0, 121, 300, 0.45),
        _card("A10G-24GB", 22.0, 70, 600, 0.75),
        _card("A6000-48GB", 47.4, 155, 768, 0.50),
        _card("L40S-48GB", 44.4, 362, 864, 0.85),
        _card("A100-40GB", 39.4, 312, 1555, 1.20, link=300),
        _card("A100-80GB", 79.2, 312, 2039, 1.50, link=300),
        _card("H100-80GB", 79.1, 989, 3350, 2.70, link=450),
        _card("H200-141GB", 139.7, 989, 4800, 3.60, link=450),
        _card("B200-180GB", 178.0, 2250, 7700, 6.00, link=900),
    )
}
"""Known cards. Usable memory is what users report of CUDA's total (error correction on, where it is the default); it varies by
a few tenths of a GiB with driver and board."""


@dataclass(frozen=True)
class Cluster:
    """Machines of equal cards."""

    card: Card
    per_node: int
    nodes: int = 1

    @property
    def count(self) -> int:
        """All cards."""
        return self.per_node * self.nodes

    @property
    def link(self) -> float:
        """GB/s of the slowest link between cards."""
        return self.card.link if self.nodes == 1 else min(self.card.link, NODE_LINK)

    def __str__(self) -> str:
        nodes = f"{self.nodes}x" if self.nodes > 1 else ""
        return f"{nodes}{self.per_node}x{self.card.name}"


def parse_gpus(text: str, price: float | None = None) -> Cluster:
    """Read `[NODES x] COUNT x CARD`, where CARD is a known name (`H100`) or a plain size (`24GB`).

    A plain size counts 10^9 bytes to the GB, the cautious reading: a 24 GB card so has 22.4 GiB. Nothing is known of its speed.

    Raises:
        ConfigError: an unknown name, a size or a number of cards that cannot be.
    """
    found = re.fullmatch(r"(?:([0-9]{1,6})\s*[x*]\s*)?(?:([0-9]{1,6})\s*[x*]\s*)?(\S+)", text.strip().lower())
    if found is None or re.match(r"-?[0-9]+[x*]", found[3]):
        raise ConfigError(
            f"--gpus {text!r} cannot be read.",
            allowed="COUNTxCARD or NODESxCOUNTxCARD",
            fix="--gpus 8xH100-80GB",
        )
    counts, name = [count for count in found.groups()[:2] if count], text.strip()[found.start(3) :]
    numbers = [int(count) for count in counts]
    if 0 in numbers:
        raise ConfigError(
            f"--gpus {text!r} is no card at all.", allowed="counts from 1", fix=f"--gpus 1x{name}"
        )
    card = _find(name)
    if price is not None:
        card = replace(card, price=price)
    nodes, per_node = ([1, 1, *numbers])[-2:]
    if per_node > 16:
        raise ConfigError(
            f"--gpus {text!r} puts {per_node} cards into one machine.",
            allowed="at most 16 in a machine; several machines are NODESxCOUNTxCARD",
            fix=f"--gpus {-(-per_node // 8)}x8x{card.name}",
        )
    return Cluster(card, per_node, nodes)


def _find(name: str) -> Card:
    size = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(GB|GIB|G)", name, flags=re.IGNORECASE)
    if size:
        unit = GIB if size[2].lower() == "gib" else 10**9
        memory = float(size[1]) * unit
        if not 1e9 <= memory <= 1e12:
            raise ConfigError(
                f"--gpus: a card of {name} cannot hold a run.",
                allowed="sizes from 1GB to 1000GB",
                fix="--gpus 1x24GB",
            )
        return Card(f"{size[1]}{'GiB' if unit == GIB else 'GB'}", int(memory))
    wanted = name.upper()
    found = [
        card for known, card in CARDS.items() if wanted in (known.upper(), known.upper().partition("-")[0])
    ]
    if not found:
        raise ConfigError(
            f"--gpus: the card {name!r} is not known.{did_you_mean(wanted, CARDS)}",
            allowed=f"{', '.join(CARDS)}, or a plain size",
            fix="--gpus 1x48GB",
        )
    # Of one name with two sizes, such as A100, the larger must be asked for.
    return min(found, key=lambda card: card.memory)
