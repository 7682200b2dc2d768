"""Reward shaping: normalisation, clipping and a length penalty, in this order.

    z_n = (R_n - mean) / (std + 1e-4)                                  `batch` and `running`
    z_n = sum over sources k of w_k (r_kn - mean_k) / (std_k + 1e-4)   `each`
    c_n = min(max(z_n, low), high)
    S_n = c_n - per_token x max(0, L_n - above)

Mean and standard deviation are over the update's answers (`batch`), over all answers so far, these included
(`running`), or over the answers to one prompt (`each`).
Answers without a reward are in no mean and stay without one. Log and evaluation use the unshaped reward R.

Shapes: N answers of an update on one rank.

Sources: normalising by a batch is TRL's GRPOTrainer (`scale_rewards="batch"`, whose 1e-4 this is), by running
moments trlX's `scale_reward: running` and TRL's former PPOTrainer (`use_score_scaling` with
`use_score_norm`); clipping TRL's `reward_clip_range`; the length penalty Singhal et al. (arXiv 2310.03716),
section 4.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from policy.rewards.protocol import RewardResult
from policy.rewards.weighted import EPSILON
from rlhf.config.rewards import ShapingConfig
from rlhf.core.errors import RewardError

STATE = "reward.json"

AllReduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all ranks."""


@dataclass(frozen=True)
class Moments:
    """Count, mean, and sum of squared differences from the mean."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    @property
    def std(self) -> float:
        """Standard deviation without Bessel's correction; 0 of no values."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    def merged(self, other: Moments) -> Moments:
        """Moments of the values of both.

            n = n1 + n2,  d = m2 - m1,  m = m1 + d n2 / n,  S = S1 + S2 + d^2 n1 n2 / n

        Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
        variances", 1979.
        """
        count = self.count + other.count
        if not count:
            return self
        difference = other.mean - self.mean
        mean = self.mean + difference * other.count / count
        return Moments(
            count, mean, self.squares + other.squares + difference**2 * self.count * other.count / count
        )


def moments_of(rewards_N: Tensor, all_reduce: AllReduce) -> Moments:
    """Moments of the values that are not NaN, over all ranks."""
    known = rewards_N[~torch.isnan(rewards_N)].double()
    count, total = all_reduce(torch.stack([torch.tensor(float(len(known)), dtype=torch.double), known.sum()]))
    if not count:
        return Moments()
    mean = total / count
    squares = all_reduce(((known - mean) ** 2).sum())
    return Moments(float(count), float(mean), float(squares))


def normalised(rewards_N: Tensor, moments: Moments) -> Tensor:
    """z = (R - mean) / (std + 1e-4); equal rewards become 0."""
    return (rewards_N - moments.mean) / (moments.std + EPSILON)


def length_penalised(rewards_N: Tensor, lengths_N: Tensor, per_token: float, above: int) -> Tensor:
    """S = R - per_token x max(0, L - above)."""
    return rewards_N - per_token * (lengths_N - above).clamp(min=0)


class Shaping:
    """Shapes the rewards of one update after another.

    Args:
        config: the config's section.
        all_reduce: sums a tensor over ranks.

    Attributes:
        seen: moments of all unshaped rewards so far; saved in checkpoints.
    """

    def __init__(self, config: ShapingConfig, all_reduce: AllReduce = lambda tensor: tensor) -> None:
        self.config, self.all_reduce = config, all_reduce
        self.seen = Moments()

    def of(self, result: RewardResult, lengths: Sequence[int]) -> list[float]:
        """The shaped reward of each answer; NaN where it has none.

        Args:
            lengths: of the answers, in tokens.

        Raises:
            RewardError: an answer has no reward and `missing` is `error`; or no answer on any rank has one.
        """
        rewards_N = torch.tensor(result.rewards, dtype=torch.double)
        now = moments_of(rewards_N, self.all_reduce)
        if not now.count:
            raise result.no_rewards_error()
        if self.config.missing == "error" and not all(result.known):
            raise RewardError(
                f"{result.known.count(False)} of {len(result.rewards)} answers have no reward. "
                f"The first: {next(iter(result.missing.values()), 'the reward is NaN')}",
                allowed="a finite number for each answer",
                fix="reward_shaping.missing=drop leaves such answers out and counts them",
            )
        if self.config.normalise == "each":
            assert result.decoupled is not None  # the rewards were built for this setting
            rewards_N = torch.tensor(result.decoupled, dtype=torch.double)
        if self.config.normalise == "running":
            self.seen = self.seen.merged(now)
        if self.config.normalise in ("batch", "running"):
            rewards_N = normalised(rewards_N, {"batch": now, "running": self.seen}[self.config.normalise])
        if self.config.clip is not None:
            rewards_N = rewards_N.clamp(*self.config.clip)
        if (penalty := self.config.length_penalty) is not None:
            lengths_N = torch.tensor(lengths, dtype=torch.double)
            rewards_N = length_penalised(rewards_N, lengths_N, penalty.per_token, penalty.above)
        return rewards_N.tolist()

    def save(self, folder: Path) -> None:
        """Write the state that a resumed run needs."""
        (folder / STATE).write_text(json.dumps(asdict(self.seen)), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; older checkpoints lack it and start from no rewards."""
        if (folder / STATE).exists():
            self.seen = Moments(**json.loads((folder / STATE).read_text(encoding="utf-8")))
