"""Figures of one update, gathered row by row. Shapes: N answers of the update, M tokens of a row."""

from __future__ import annotations

import itertools
import math
import resource
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from policy.algorithms.protocol import SampledRow
from policy.update.kl import Estimator, kl_of_answers, kl_of_tokens
from rlhf.core.errors import DivergenceError
from rlhf.core.records import Prompt, Rollout
from rlhf.data.checks import gold_score
from rlhf.kernels.tensors import segment_sum

LARGE_REWARD = 1e6
"""Rewards beyond this are named when a loss or a gradient is not finite."""

KL_NAMES: Mapping[Estimator, tuple[str, str]] = {
    "k1": ("kl/mean", "kl/sum"),
    "abs": ("kl/abs_mean", "kl/abs_sum"),
    "k2": ("kl/k2_mean", "kl/k2_sum"),
    "k3": ("kl/k3_mean", "kl/k3_sum"),
}
"""Estimator: its mean over all tokens of the update, and the mean over answers of its sum."""


@dataclass(frozen=True)
class _Unread:
    """Figures of a row, on its device. Shapes: E estimators."""

    answers: list[int]
    kl_N: Tensor
    charged_N: Tensor
    sums_E: Tensor
    log_ratio_M: Tensor
    entropy_M: Tensor


class UpdateStatistics:
    """Collects what the rows of one update computed, and names it.

    Args:
        rewards: one an answer, as they were given; NaN where there is none.
        rollouts: the answers, in the same order.
        passes: over the answers; losses and the algorithm's own figures are means over them.
        columns: further rewards of each answer by name, for the log alone.
        missing: why an answer has no reward, by its place.
    """

    def __init__(
        self,
        rewards: Sequence[float],
        rollouts: Sequence[Rollout],
        passes: int = 1,
        *,
        columns: Mapping[str, Sequence[float]] | None = None,
        missing: Mapping[int, str] | None = None,
    ) -> None:
        self.columns, self.missing = columns or {}, missing or {}
        self.rewards, self.rollouts = list(rewards), list(rollouts)
        self.kl_sum = [0.0] * len(rollouts)
        self.charged = [0.0] * len(rollouts)
        self.advantages: list[Tensor] = []
        self.log_ratios: list[Tensor] = []
        self.sums: dict[Estimator, float] = dict.fromkeys(get_args(Estimator), 0.0)
        self.entropies: list[Tensor] = []
        self.passes = passes
        self.losses: dict[str, float] = defaultdict(float)
        self.own: dict[str, float] = defaultdict(float)
        self._unread: list[_Unread] = []
        self._unread_losses: list[tuple[dict[str, float], Mapping[str, Tensor | float]]] = []

    def add(
        self,
        answers: Sequence[int],
        measured: SampledRow,
        *,
        charged_N: Tensor,
        entropy_M: Tensor,
    ) -> None:
        """One packed row as it was sampled; `answers` are its answers' places in the update."""
        log_ratio_M = measured.logps_M - measured.reference_M
        count = len(answers)
        estimates = [
            kl_of_answers(log_ratio_M, measured.answer_M, count, estimator, "sum").sum()
            for estimator in self.sums
        ]
        kl_N = segment_sum(log_ratio_M, measured.answer_M, count)
        self._unread.append(
            _Unread(list(answers), kl_N, charged_N, torch.stack(estimates), log_ratio_M, entropy_M.detach())
        )

    def add_losses(self, losses: Mapping[str, Tensor | float], own: Mapping[str, Tensor | float]) -> None:
        """One row's share of a pass: of each term of the loss, and the algorithm's own figures, summed over answers."""
        self._unread_losses.append((self.losses, losses))
        self._unread_losses.append((self.own, own))

    def read(self) -> UpdateStatistics:
        """Move what the rows left on the device to the CPU: once per update, since every read waits for the device."""
        for row in self._unread:
            for place, kl, charged in zip(
                row.answers, row.kl_N.tolist(), row.charged_N.tolist(), strict=True
            ):
                self.kl_sum[place], self.charged[place] = kl, charged
            for estimator, value in zip(self.sums, row.sums_E.tolist(), strict=True):
                self.sums[estimator] += value
            self.log_ratios.append(row.log_ratio_M.cpu())
            self.entropies.append(row.entropy_M.cpu())
        for totals, row_figures in self._unread_losses:
            for name, value in row_figures.items():
                totals[name] += float(value)
        self._unread.clear()
        self._unread_losses.clear()
        self.advantages = [one.cpu() for one in self.advantages]
        return self

    def figures(self, coefficient: float) -> dict[str, float]:
        """Names as in metrics.jsonl.

        Args:
            coefficient: of the KL, in this update.
        """
        self.read()
        count = len(self.rollouts)
        lengths = torch.tensor([float(len(rollout.completion_ids)) for rollout in self.rollouts])
        rewards = torch.tensor(self.rewards)
        known = ~torch.isnan(rewards)
        log_ratio = torch.cat(self.log_ratios)
        charged = sum(self.charged) / count
        figures = {
            **{name: value / self.passes for name, value in self.losses.items()},
            "reward/mean": rewards[known].mean().item(),
            "reward/std": rewards[known].std(correction=0).item(),
            "reward/missing": count - int(known.sum()),
            **{f"reward/{name}": torch.tensor(one).nanmean().item() for name, one in self.columns.items()},
            "kl/charged": charged,
            "kl/coefficient": coefficient,
            "kl/penalty": coefficient * charged,
            "length/mean": lengths.mean().item(),
            "length/finished_share": sum(r.finished for r in self.rollouts) / count,
            "length/reward_correlation": _correlation(lengths[known], rewards[known]),
            "policy/entropy": torch.cat(self.entropies).mean().item(),
            "advantage/std": torch.cat(self.advantages).std(correction=0).item(),
            "memory/peak_gib": peak_memory_gib(),
            **reserved_memory(),
        }
        for estimator, (mean, total) in KL_NAMES.items():
            figures[mean] = kl_of_tokens(log_ratio, estimator).mean().item()
            figures[total] = self.sums[estimator] / count
        own = {name: value / count / self.passes for name, value in self.own.items()}
        return figures | own

    def samples(
        self, step: int, prompts: Sequence[Prompt], golds: Sequence[float | None]
    ) -> list[Mapping[str, Any]]:
        """Rows of samples.jsonl."""
        self.read()
        return [
            {
                "step": step,
                "prompt": [m.as_dict() for m in prompt.messages],
                "answer": rollout.text,
                "reward": reward,
                **{f"reward/{name}": column[place] for name, column in self.columns.items()},
                **({"missing": self.missing[place]} if place in self.missing else {}),
                "gold": gold,
                "kl": kl,
                "length": len(rollout.completion_ids),
                "finished": rollout.finished,
            }
            for place, (prompt, rollout, reward, gold, kl) in enumerate(
                zip(prompts, self.rollouts, self.rewards, golds, self.kl_sum, strict=True)
            )
        ]


def _correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's r; 0 where one of the two is constant, or there are none."""
    if not len(a) or a.std(correction=0) == 0 or b.std(correction=0) == 0:
        return 0.0
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def peak_memory_gib() -> float:
    """Highest memory so far: of the card where there is one, else of this process (an in-process engine included)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def reserved_memory() -> dict[str, float]:
    """On a GPU, what the allocator took from it at most: allocated memory and what fragments leave unused."""
    if not torch.cuda.is_available():
        return {}
    return {"memory/reserved_gib": torch.cuda.max_memory_reserved() / 2**30}


def gold_scores(prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> list[float | None]:
    """What can be checked of each answer; None where its prompt has no check."""
    return [
        None if prompt.check is None else gold_score(prompt.check, rollout.text)
        for prompt, rollout in zip(prompts, rollouts, strict=True)
    ]


def spread_share(rewards: Sequence[float], group: int) -> float:
    """Share of groups of answers to one prompt whose rewards differ: the others have advantages of 0 and teach nothing."""
    groups = [rewards[start : start + group] for start in range(0, len(rewards), group)]
    known = [[reward for reward in rewards if math.isfinite(reward)] for rewards in groups]
    return sum(len(set(rewards)) > 1 for rewards in known) / len(groups)


def order_agreement(rewards: Sequence[float], others: Sequence[float], group: int) -> float | None:
    """Share of pairs of answers to one prompt that two rewards order alike.

        pairs (i, j) of a group with r_i != r_j and s_i != s_j;   alike where (r_i > r_j) == (s_i > s_j)

    A pair with a missing reward (NaN) is left out, as is one that either reward calls equal. None where no pair is left.
    """
    alike = list[bool]()
    for start in range(0, len(rewards), group):
        pairs = zip(rewards[start : start + group], others[start : start + group], strict=True)
        known = [(r, s) for r, s in pairs if math.isfinite(r) and math.isfinite(s)]
        alike += [
            (r > other_r) == (s > other_s)
            for (r, s), (other_r, other_s) in itertools.combinations(known, 2)
            if r != other_r and s != other_s
        ]
    return sum(alike) / len(alike) if alike else None


def diverged(what: str, update: int, rewards: Sequence[float]) -> DivergenceError:
    """The error for a loss or a gradient that is not finite: rewards of a great size are the cause before the learning rate is."""
    known = [reward for reward in rewards if math.isfinite(reward)]
    largest = max(map(abs, known), default=0.0)
    if largest > LARGE_REWARD:
        return DivergenceError(
            f"{what} at update {update}: its rewards go from {min(known):.3g} to {max(known):.3g}.",
            allowed=f"rewards whose size float32 can square and add up; up to {LARGE_REWARD:g} is safe",
            fix="return smaller rewards; or ignore the excess: reward_shaping.clip=[-1e6,1e6]",
        )
    return DivergenceError(
        f"{what} at update {update}.",
        allowed="a finite number",
        fix="lower optimizer.learning_rate; samples.jsonl holds the answers of the updates before",
    )


START_BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""By the format of products: how far policy and reference may be apart, in the mean over tokens, before anything is learnt. On a GPU a kernel
with gradients may be another than the one without, and bfloat16 rounds a log-probability by about 1e-2; a wrong reference is further off."""


def start_bound(dtype: torch.dtype, *, on_gpu: bool) -> float:
    """The bound for a device: on a CPU both passes run the same kernels, in any format."""
    return START_BOUNDS[dtype] if on_gpu else START_BOUNDS[torch.float32]


def check_update(
    number: int,
    figures: Mapping[str, float],
    bound: float = START_BOUNDS[torch.float32],
    *,
    rewards: Sequence[float] = (),
) -> None:
    """Make sure that the loss is a number, and that the policy starts as the reference, to within `bound`.

    Raises:
        DivergenceError: one of them does not hold.
    """
    for name in ("loss/policy", "loss/value", "loss/kl"):
        if not math.isfinite(figures.get(name, 0.0)):
            what = f"The {name.removeprefix('loss/')} loss is {figures[name]}"
            raise diverged(what, number, rewards)
    if number == 1 and not figures["kl/abs_mean"] <= bound:
        raise DivergenceError(
            "Before the first update the policy and the reference give different log-probabilities: mean |log-ratio| "
            f"is {figures['kl/abs_mean']:.2g}.",
            allowed=f"at most {bound:g}: their weights are still equal, so only rounding may differ",
            fix="model.fast_layers=false, which computes both by transformers' and PEFT's own layers (please report "
            "the base); if it still differs, model.packing=false",
        )
