"""An ensemble of reward models: their mean, lower confidence bound or minimum as one reward.

    mean         m = mean over k of r_k
    lower-bound  m - c x std over k of r_k
    worst        min over k of r_k

A policy exploits the errors of a single reward model; the pessimistic rules give less where the members of an
ensemble disagree. `reward/spread` in the log is the mean standard deviation over the members. A growing
spread is a sign of over-optimisation: the policy leaves the region in which the members agree.

Source: Coste et al., "Reward Model Ensembles Help Mitigate Overoptimization" (arXiv 2310.02743): mean,
worst-case and uncertainty-weighted optimisation (theirs subtracts c x variance).

Shapes: K members, N answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from policy.rewards.protocol import Missing, RewardTerm
from rlhf.core.records import Prompt, Rollout

Rule = Literal["mean", "lower-bound", "worst"]


def combined(rewards_KN: Tensor, rule: Rule, coefficient: float) -> Tensor:
    """rewards_N of the ensemble, see the formulas above; the standard deviation is without Bessel's
    correction.

    Args:
        coefficient: c, of `lower-bound`.

    Returns:
        rewards_N
    """
    if rule == "worst":
        return rewards_KN.min(dim=0).values
    mean_N = rewards_KN.mean(dim=0)
    return mean_N - coefficient * rewards_KN.std(dim=0, correction=0) if rule == "lower-bound" else mean_N


class EnsembleReward:
    """Combines several rewards by one rule; an answer that a member cannot score has no reward.

    Args:
        members: at least two.
    """

    def __init__(self, members: Sequence[RewardTerm], rule: Rule, coefficient: float) -> None:
        self.members, self.rule, self.coefficient = list(members), rule, coefficient
        self._spread = math.nan

    def of(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> list[float | Missing]:
        """The combined reward of each answer."""
        by_member = [member.of(prompts, rollouts) for member in self.members]
        columns = list(zip(*by_member, strict=True))
        known = [index for index, column in enumerate(columns) if not _first_missing(column)]
        rewards_KN = torch.tensor([[row[index] for index in known] for row in by_member], dtype=torch.double)
        self._spread = float(rewards_KN.std(dim=0, correction=0).mean()) if known else math.nan
        values = dict(zip(known, combined(rewards_KN, self.rule, self.coefficient).tolist(), strict=True))
        return [
            values[index] if index in values else _first_missing(column)[0]
            for index, column in enumerate(columns)
        ]

    def figures(self) -> Mapping[str, float]:
        """`reward/spread` of the last call."""
        return {} if math.isnan(self._spread) else {"reward/spread": self._spread}


def _first_missing(column: Sequence[float | Missing]) -> list[Missing]:
    """The first missing reward of an answer: a list of one element, or empty."""
    return [value for value in column if isinstance(value, Missing)][:1]
