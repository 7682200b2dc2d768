"""What the loop asks of whoever rewards answers, and what they ask of a single source."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from rlhf.core.errors import RewardError
from rlhf.core.records import Prompt, Rollout


@dataclass(frozen=True)
class Missing:
    """An answer without a reward: the reason, and what the user can change."""

    reason: str
    fix: str = field(default="", compare=False)


def group_sizes(prompts: Sequence[Prompt]) -> list[int]:
    """Numbers of answers of the groups, in order: answers to one prompt stand together, with the same prompt object."""
    return [len(list(run)) for _, run in itertools.groupby(prompts, key=id)]


class Source(Protocol):
    """One way to judge answers."""

    def of(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> list[float | Missing]:
        """A finite reward for each answer, or why there is none; `prompts` holds one prompt for each, so the same one stands there several times."""
        ...


@runtime_checkable
class Reporting(Protocol):
    """A source that reports figures of its last call, such as cost and latency."""

    def figures(self) -> Mapping[str, float]:
        """Named as in metrics.jsonl."""
        ...


@dataclass(frozen=True)
class RewardResult:
    """What answers are worth.

    A reward that could not be computed is NaN: whoever forgets to leave it out gets NaN, and not a wrong number.
    """

    rewards: list[float]
    """Added up over the sources, with their weights."""
    columns: Mapping[str, list[float]] = field(default_factory=dict)
    """The rewards of each source by its name, without its weight; empty where there is one source."""
    missing: Mapping[int, str] = field(default_factory=dict)
    """Why an answer has no reward, by its place."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """What the sources report of themselves, named as in metrics.jsonl."""
    decoupled: list[float] | None = None
    """The weighted sum of rewards that were normalised over their group, each source by itself; None where that is off."""

    @property
    def known(self) -> list[bool]:
        """Which answers have a reward."""
        return [not math.isnan(reward) for reward in self.rewards]

    def none_known(self) -> RewardError:
        """The error for answers of which none has a reward."""
        return RewardError(
            f"None of the {len(self.rewards)} answers has a reward. Of the first: {self.missing.get(0, 'not known why')}",
            allowed="with reward_shaping.missing=drop some answers may be without, not all",
            fix="remove the cause that is named above; weight=0 only logs the rewards of a source",
        )


class Rewards(Protocol):
    """Says what answers are worth."""

    def of(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> RewardResult:
        """One reward for each answer.

        Raises:
            RewardError: one could not be computed, where that is not allowed, or none could.
        """
        ...
