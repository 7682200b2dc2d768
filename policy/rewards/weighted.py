"""The weighted sum of several rewards, and what becomes of an answer that one of them could not judge.

    R_n = sum over sources k of w_k r_kn

A sum with a missing part is missing: TRL's trainers leave the part out, so that an answer is worth less, or more, because something
failed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from policy.rewards.protocol import Missing, Reporting, RewardResult, Source
from rlhf.core.errors import RewardError
from rlhf.core.records import Prompt, Rollout


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
    """

    def __init__(self, parts: Sequence[Part], missing: Literal["error", "drop"]) -> None:
        self.parts, self.missing = list(parts), missing

    def of(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> RewardResult:
        """One reward for each answer, and each source's own where there are several.

        Raises:
            RewardError: a reward could not be computed, and `missing` is `error`.
        """
        sums, reasons = [0.0] * len(rollouts), dict[int, str]()
        columns: dict[str, list[float]] = {}
        figures: dict[str, float] = {}
        for part in self.parts:
            judged = part.source.of(prompts, rollouts)
            if isinstance(part.source, Reporting):
                figures |= part.source.figures()
            columns[part.name] = [math.nan if isinstance(one, Missing) else one for one in judged]
            if not part.weight:
                continue
            for place, one in enumerate(judged):
                if isinstance(one, Missing):
                    reasons.setdefault(place, f"{part.name}: {one.reason}")
                    sums[place] = math.nan
                else:
                    sums[place] += part.weight * one
        if reasons and self.missing == "error":
            raise _no_reward(prompts, rollouts, reasons)
        return RewardResult(sums, columns if len(columns) > 1 else {}, reasons, figures)


def _no_reward(
    prompts: Sequence[Prompt], rollouts: Sequence[Rollout], reasons: dict[int, str]
) -> RewardError:
    place = min(reasons)
    asked, answer = prompts[place].messages[-1].content, rollouts[place].text
    return RewardError(
        f"{len(reasons)} of {len(rollouts)} answers have no reward. Of answer {place + 1}, {reasons[place]}\n"
        f"  asked: {asked!r:.100}\n  answer: {answer!r:.100}",
        allowed="a finite number for each answer",
        fix="mend the reward, or leave such answers out and count them: reward_shaping.missing=drop",
    )
