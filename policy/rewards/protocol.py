"""Interfaces of rewards: a single term, the weighted sum, and their results."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from reward.judge.judge import SUMMED
from rlhf.core.errors import RewardError
from rlhf.core.records import Prompt, Rollout


@dataclass(frozen=True)
class Missing:
    """An answer without a reward: the reason, and what the user can change."""

    reason: str
    fix: str = field(default="", compare=False)


def merged_figures(reported: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Figures of several terms: counts and costs summed, others averaged over the terms that have them."""
    names = dict.fromkeys(name for figures in reported for name in figures)
    merged = {}
    for name in names:
        values = [figures[name] for figures in reported if name in figures]
        total = math.fsum(values)
        merged[name] = total if name in SUMMED else total / len(values)
    return merged


def group_sizes(prompts: Sequence[Prompt]) -> list[int]:
    """Answers of each group, in order: answers to one prompt are adjacent, with the same prompt object."""
    return [len(list(run)) for _, run in itertools.groupby(prompts, key=id)]


class RewardTerm(Protocol):
    """One reward of a run: a model, a server, a function, a judge or an ensemble."""

    def of(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> list[float | Missing]:
        """A finite reward for each answer, or why there is none.

        Args:
            prompts: the prompt of each answer; repeated for the answers of a group.
        """
        ...


@runtime_checkable
class Reporting(Protocol):
    """A term that reports figures of its last call, such as cost and latency."""

    def figures(self) -> Mapping[str, float]:
        """Figures under their names in metrics.jsonl."""
        ...


@dataclass(frozen=True)
class RewardResult:
    """Rewards of answers.

    A missing reward is NaN, so that code that forgets to exclude it returns NaN and not a wrong number.
    """

    rewards: list[float]
    """Weighted sums over the terms."""
    columns: Mapping[str, list[float]] = field(default_factory=dict)
    """The rewards of each term by its name, without its weight; empty for a single term."""
    missing: Mapping[int, str] = field(default_factory=dict)
    """Why an answer has no reward, by its index."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Figures of the terms, named as in metrics.jsonl."""
    decoupled: list[float] | None = None
    """Weighted sums of terms that were normalised over their group; None where that is off."""

    @property
    def known(self) -> list[bool]:
        """Which answers have a reward."""
        return [not math.isnan(reward) for reward in self.rewards]

    def no_rewards_error(self) -> RewardError:
        """The error where no answer has a reward."""
        return RewardError(
            f"None of the {len(self.rewards)} answers has a reward. Of the first: "
            f"{self.missing.get(0, 'not known why')}",
            allowed="with reward_shaping.missing=drop some answers may be without, not all",
            fix="remove the cause that is named above; weight=0 only logs the rewards of a source",
        )


class Rewards(Protocol):
    """Computes the rewards of answers."""

    def of(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> RewardResult:
        """One reward for each answer.

        Raises:
            RewardError: a reward is missing where the config does not allow it, or all are.
        """
        ...
