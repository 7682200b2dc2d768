"""What the loop asks of whoever rewards answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rlhf.core.records import Prompt, Rollout


class Rewards(Protocol):
    """Says what answers are worth."""

    def of(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> list[float]:
        """One reward for each answer; `prompts` holds one prompt for each, so the same one stands there several times."""
        ...
