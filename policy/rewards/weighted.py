"""The weighted sum of several rewards.

    R_n = sum over sources k of w_k r_kn

A sum with a missing term is missing. TRL's trainers skip the term instead, which changes an answer's reward
because a reward function failed.

With `reward_shaping.normalise: each` the algorithm gets the sum of terms that were normalised over their
group first, so that no term dominates by its scale. Source: GDPO (arXiv 2601.05242).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Literal

from policy.rewards.protocol import (
    Missing,
    Reporting,
    RewardResult,
    RewardTerm,
    group_sizes,
    merged_figures,
)
from rlhf.core.errors import RewardError, excerpt
from rlhf.core.records import Prompt, Rollout

EPSILON = 1e-4
"""Added to a standard deviation, as TRL's GRPOTrainer does."""


@dataclass(frozen=True)
class WeightedTerm:
    """A term with its weight and its name in the log; with weight 0 it is only logged, and may be missing."""

    name: str
    weight: float
    term: RewardTerm


class WeightedRewards:
    """The weighted sum of its terms.

    Args:
        missing: at an answer without a reward, `error` raises and `drop` marks it as missing.
        normalise_each: also sum the terms after each was normalised over its group.
    """

    def __init__(
        self,
        terms: Sequence[WeightedTerm],
        missing: Literal["error", "drop"],
        *,
        normalise_each: bool = False,
    ) -> None:
        self.terms, self.missing, self.normalise_each = list(terms), missing, normalise_each

    def of(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> RewardResult:
        """The weighted sum for each answer, with the terms where there are several.

        Raises:
            RewardError: a reward could not be computed, and `missing` is `error`.
        """
        reasons = dict[int, str]()
        fixes = dict[int, str]()
        columns: dict[str, list[float]] = {}
        reported: list[Mapping[str, float]] = []
        for weighted in self.terms:
            rewards = weighted.term.of(prompts, rollouts)
            if isinstance(weighted.term, Reporting):
                reported.append(weighted.term.figures())
            columns[weighted.name] = [
                math.nan if isinstance(reward, Missing) else reward for reward in rewards
            ]
            for index, reward in enumerate(rewards):
                if weighted.weight and isinstance(reward, Missing):
                    reasons.setdefault(index, f"{weighted.name}: {reward.reason}")
                    fixes.setdefault(index, reward.fix)
        if reasons and self.missing == "error":
            index = min(reasons)
            raise _no_reward(prompts[index], rollouts[index].text, reasons, fixes[index], len(rollouts))
        counted = [(term.weight, columns[term.name]) for term in self.terms if term.weight]
        sizes = group_sizes(prompts)
        normalised = [(weight, group_normalised(values, sizes)) for weight, values in counted]
        return RewardResult(
            _sum(counted, len(rollouts)),
            columns if len(columns) > 1 else {},
            reasons,
            merged_figures(reported),
            _sum(normalised, len(rollouts)) if self.normalise_each else None,
        )


def group_normalised(rewards: Sequence[float], sizes: Sequence[int]) -> list[float]:
    """Rewards normalised over their group: z = (r - mean) / (std + 1e-4).

    Equal rewards become 0. NaN stays NaN and is excluded from mean and std.

    Args:
        sizes: number of answers of each group, in order.
    """
    normalised, start = list[float](), 0
    for size in sizes:
        group = rewards[start : start + size]
        known = [reward for reward in group if not math.isnan(reward)]
        mean, std = (fmean(known), pstdev(known)) if known else (math.nan, math.nan)
        normalised += [(reward - mean) / (std + EPSILON) for reward in group]
        start += size
    return normalised


def _sum(weighted: Sequence[tuple[float, Sequence[float]]], answers: int) -> list[float]:
    """The weighted sum for each answer; NaN where a term is NaN."""
    return [sum(weight * values[index] for weight, values in weighted) for index in range(answers)]


def _no_reward(prompt: Prompt, answer: str, reasons: dict[int, str], fix: str, answers: int) -> RewardError:
    """The error for answers without a reward, with the first of them in full detail."""
    index = min(reasons)
    skip = "reward_shaping.missing=drop leaves such answers out and counts them"
    return RewardError(
        f"{len(reasons)} of {answers} answers have no reward. Answer {index + 1}: {reasons[index]}\n"
        f"  prompt: {excerpt(prompt.messages[-1].content)}\n  answer: {excerpt(answer)}",
        allowed="a finite number for each answer",
        fix=f"{fix}; or {skip}" if fix else skip,
    )
