"""The number of updates, the items of each, and the learning rate's factor."""

from __future__ import annotations

import math
import random
from typing import Protocol


def learning_rate_factor(step: int, schedule: str, warmup: int, total: int) -> float:
    """The factor on the peak learning rate in update `step`, counted from 0.

        (step + 1) / warmup              for step < warmup
        1                                constant
        (total - step) / (total - warmup)                      linear
        (1 + cos(pi (step - warmup) / (total - warmup))) / 2   cosine

    transformers' schedules start at step / warmup, so their first update has a learning rate of 0. The decays
    are the same.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    if schedule == "linear":
        return max(0.0, 1.0 - progress)
    if schedule == "cosine":
        return max(0.0, (1.0 + math.cos(math.pi * progress)) / 2)
    return 1.0


class Passes(Protocol):
    """The keys of a config that say how long it trains."""

    @property
    def epochs(self) -> float:
        """Passes over the data."""
        ...

    @property
    def batch_size(self) -> int:
        """Items in one update."""
        ...

    @property
    def max_steps(self) -> int | None:
        """The most updates; None for no limit."""
        ...


def steps_of(passes: Passes, items: int) -> int:
    """Updates of a stage or run: whole batches in its epochs, at least one, at most max_steps."""
    steps = max(1, int(passes.epochs * items / passes.batch_size))
    return min(steps, passes.max_steps) if passes.max_steps else steps


def draw_order(items: int, draws: int, seed: int) -> list[int]:
    """The item of each draw: consecutive shuffled passes over all items."""
    generator = random.Random(seed)
    order: list[int] = []
    while len(order) < draws:
        order += generator.sample(range(items), items)
    return order[:draws]
