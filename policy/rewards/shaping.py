"""What an algorithm is given in place of the bare reward: normalised, clipped, charged for length.

    z_n = (R_n - mean) / (std + 1e-4)        `batch`: over the update's answers; `running`: over all answers so far, these included
    z_n = sum over sources k of w_k (r_kn - mean_k) / (std_k + 1e-4)        `each`: over the answers to one prompt
    c_n = min(max(z_n, low), high)
    S_n = c_n - per_token x max(0, L_n - above)

Answers without a reward are in no mean and stay without one. The log and every evaluation keep the bare reward R.

Shapes: N answers of an update on one process.

Sources: normalising by a batch is TRL's GRPOTrainer (`scale_rewards="batch"`, whose 1e-4 this is), by running moments trlX's
`scale_reward: running` and TRL's former PPOTrainer (`use_score_scaling` with `use_score_norm`); clipping TRL's `reward_clip_range`;
a charge for each token Singhal et al. (arXiv 2310.03716), section 4.
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
from rlhf.config.rewards import ShapingConfig
from rlhf.core.errors import RewardError

EPSILON = 1e-4
STATE = "reward.json"

Reduce = Callable[[Tensor], Tensor]
"""Adds a tensor up over all processes."""


@dataclass(frozen=True)
class Moments:
    """Count, mean, and sum of squared differences from the mean, of numbers that need not be kept."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    @property
    def std(self) -> float:
        """Standard deviation of the numbers themselves; 0 of none."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    def joined(self, other: Moments) -> Moments:
        """Of the numbers of both.

            n = n1 + n2,  d = m2 - m1,  m = m1 + d n2 / n,  S = S1 + S2 + d^2 n1 n2 / n

        Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
        """
        count = self.count + other.count
        if not count:
            return self
        apart = other.mean - self.mean
        mean = self.mean + apart * other.count / count
        return Moments(
            count, mean, self.squares + other.squares + apart**2 * self.count * other.count / count
        )


def moments_of(rewards_N: Tensor, reduce: Reduce) -> Moments:
    """Moments of what is not NaN, over all processes."""
    known = rewards_N[~torch.isnan(rewards_N)].double()
    count, total = reduce(torch.stack([torch.tensor(float(len(known)), dtype=torch.double), known.sum()]))
    if not count:
        return Moments()
    mean = total / count
    squares = reduce(((known - mean) ** 2).sum())
    return Moments(float(count), float(mean), float(squares))


def normalised(rewards_N: Tensor, moments: Moments) -> Tensor:
    """z = (R - mean) / (std + 1e-4): rewards that are all the same become 0."""
    return (rewards_N - moments.mean) / (moments.std + EPSILON)


def charged_for_length(rewards_N: Tensor, lengths_N: Tensor, per_token: float, above: int) -> Tensor:
    """S = R - per_token x max(0, L - above)."""
    return rewards_N - per_token * (lengths_N - above).clamp(min=0)


class Shaping:
    """Shapes the rewards of one update after another.

    Args:
        config: the config's section.
        reduce: adds up over processes, where there are several.

    Attributes:
        seen: moments of all bare rewards so far; kept in checkpoints, so that a resumed run goes on as it was.
    """

    def __init__(self, config: ShapingConfig, reduce: Reduce = lambda tensor: tensor) -> None:
        self.config, self.reduce = config, reduce
        self.seen = Moments()

    def of(self, given: RewardResult, lengths: Sequence[int]) -> list[float]:
        """What the algorithm learns from, one for each answer; NaN where an answer has no reward.

        Args:
            lengths: tokens of each answer.

        Raises:
            RewardError: an answer has no reward, where `missing` is `error`; or none has, on any process.
        """
        rewards_N = torch.tensor(given.rewards, dtype=torch.double)
        now = moments_of(rewards_N, self.reduce)
        if not now.count:
            raise given.none_known()
        if self.config.missing == "error" and not all(given.known):
            raise RewardError(
                f"{given.known.count(False)} of {len(given.rewards)} answers have no reward. "
                f"The first: {next(iter(given.missing.values()), 'the reward is NaN')}",
                allowed="a finite number for each answer",
                fix="reward_shaping.missing=drop leaves such answers out and counts them",
            )
        if self.config.normalise == "each":
            assert given.decoupled is not None  # the rewards were built for this setting
            rewards_N = torch.tensor(given.decoupled, dtype=torch.double)
        if self.config.normalise == "running":
            self.seen = self.seen.joined(now)
        if self.config.normalise in ("batch", "running"):
            rewards_N = normalised(rewards_N, {"batch": now, "running": self.seen}[self.config.normalise])
        if self.config.clip is not None:
            rewards_N = rewards_N.clamp(*self.config.clip)
        if (penalty := self.config.length_penalty) is not None:
            lengths_N = torch.tensor(lengths, dtype=torch.double)
            rewards_N = charged_for_length(rewards_N, lengths_N, penalty.per_token, penalty.above)
        return rewards_N.tolist()

    def save(self, folder: Path) -> None:
        """Write what a resumed run needs."""
        (folder / STATE).write_text(json.dumps(asdict(self.seen)), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Take up what `save` wrote; a checkpoint from before there was any has seen nothing."""
        if (folder / STATE).exists():
            self.seen = Moments(**json.loads((folder / STATE).read_text(encoding="utf-8")))
