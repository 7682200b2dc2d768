"""The weighted sum of several rewards, and what becomes of an answer that one of them could not judge.

    R_n = sum over sources k of w_k r_kn

A sum with a missing part is missing: TRL's trainers leave the part out, so that an answer is worth less, or more, because something
failed.

`reward_shaping.normalise: each` gives the algorithm the sum of rewards that were normalised first, each over its group, so
that a source with a large scale does not drown the others. Source: GDPO (arXiv 2601.05242).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Literal

from policy.rewards.protocol import Missing, Reporting, RewardResult, Source, group_sizes
from rlhf.core.errors import RewardError, excerpt
from rlhf.core.records import Prompt, Rollout

EPSILON = 1e-4
"""Added to a standard deviation, as TRL's GRPOTrainer does."""


@dataclass(frozen=True)
class Part:
    """A source with its name in the log and its weight; of weight 0 it is logged, and can neither change a reward nor lose one."""

    name: str
    weight: float
    source: Source


class WeightedRewards:
    """Adds up the rewards of its parts.

    Args:
        missing: `error` ends the run at an answer without a reward, `drop` says which they are.
        normalise_each: also add up the parts' rewards after each was normalised over its group.
    """

    def __init__(
        self, parts: Sequence[Part], missing: Literal["error", "drop"], *, normalise_each: bool = False
    ) -> None:
        self.parts, self.missing, self.normalise_each = list(parts), missing, normalise_each

    def of(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> RewardResult:
        """One reward for each answer, and each source's own where there are several.

        Raises:
            RewardError: a reward could not be computed, and `missing` is `error`.
        """
        reasons = dict[int, str]()
        fixes = dict[int, str]()
        columns: dict[str, list[float]] = {}
        figures: dict[str, float] = {}
        for part in self.parts:
            rewards = part.source.of(prompts, rollouts)
            if isinstance(part.source, Reporting):
                figures |= part.source.figures()
            columns[part.name] = [math.nan if isinstance(reward, Missing) else reward for reward in rewards]
            for place, reward in enumerate(rewards):
                if part.weight and isinstance(reward, Missing):
                    reasons.setdefault(place, f"{part.name}: {reward.reason}")
                    fixes.setdefault(place, reward.fix)
        if reasons and self.missing == "error":
            place = min(reasons)
            raise _no_reward(prompts[place], rollouts[place].text, reasons, fixes[place], len(rollouts))
        counted = [(part.weight, columns[part.name]) for part in self.parts if part.weight]
        sizes = group_sizes(prompts)
        normalised = [(weight, group_normalised(values, sizes)) for weight, values in counted]
        return RewardResult(
            _sum(counted, len(rollouts)),
            columns if len(columns) > 1 else {},
            reasons,
            figures,
            _sum(normalised, len(rollouts)) if self.normalise_each else None,
        )


def group_normalised(rewards: Sequence[float], sizes: Sequence[int]) -> list[float]:
    """Each group's rewards less their mean, over their standard deviation: z = (r - mean) / (std + 1e-4).

    A group whose rewards are all the same becomes 0. NaN stays NaN and is in no mean.

    Args:
        sizes: of the groups, in order.
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
    """The weighted sum for each answer; NaN where a part is NaN."""
    return [sum(weight * values[place] for weight, values in weighted) for place in range(answers)]


def _no_reward(prompt: Prompt, answer: str, reasons: dict[int, str], fix: str, answers: int) -> RewardError:
    """The error for answers without a reward, with the first of them in full detail."""
    place = min(reasons)
    skip = "reward_shaping.missing=drop leaves such answers out and counts them"
    return RewardError(
        f"{len(reasons)} of {answers} answers have no reward. Answer {place + 1}: {reasons[place]}\n"
        f"  prompt: {excerpt(prompt.messages[-1].content)}\n  answer: {excerpt(answer)}",
        allowed="a finite number for each answer",
        fix=f"{fix}; or {skip}" if fix else skip,
    )
