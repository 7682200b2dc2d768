"""Statistics of one update: accumulated per micro-batch, merged over ranks, logged under the names of
metrics.jsonl.

Shapes: N answers of a micro-batch, M their tokens.
"""

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

from policy.algorithms.protocol import MeasuredBatch
from policy.rollouts.probe import EngineProbe
from policy.update.losses import Estimator, kl_of_answers, kl_of_tokens
from rlhf.core.records import Prompt, Rollout
from rlhf.data.checks import gold_score
from rlhf.distributed import processes
from rlhf.kernels.tensors import segment_sum, to_cpu

KL_NAMES: Mapping[Estimator, tuple[str, str]] = {
    "k1": ("kl/mean", "kl/sum"),
    "abs": ("kl/abs_mean", "kl/abs_sum"),
    "k2": ("kl/k2_mean", "kl/k2_sum"),
    "k3": ("kl/k3_mean", "kl/k3_sum"),
}
"""Names of each estimator's mean over all tokens of the update, and of its per-answer sum's mean."""

SUMMED = (
    "engine/tokens_per_second",
    "engine/retried_prompts",
    "judge/requests",
    "judge/cached",
    "judge/unparsed",
    "judge/prompt_tokens",
    "judge/completion_tokens",
    "judge/dollars",
    "reward/groups_skipped",
)
"""Figures that are summed over ranks."""
AVERAGED = ("judge/seconds", "judge/position_bias", "judge/order_agreement")
"""Figures that are averaged over the ranks that have them."""


@dataclass(frozen=True)
class _Pending:
    """Statistics of a micro-batch that are still on its device. Shapes: E estimators."""

    answers: list[int]
    tensors: tuple[Tensor, ...]
    """kl_N, charged_N, sums_E, log_ratio_M and entropy_M; tokens in the order of the answers."""


class UpdateStatistics:
    """Accumulates the statistics of one update.

    Args:
        rewards: of each answer before shaping; NaN where there is none.
        rollouts: in the same order.
        epochs: passes over the answers; losses and the algorithm's figures are means over them.
        columns: further rewards of each answer by name, which are only logged.
        missing: why an answer has no reward, by its position.
    """

    def __init__(
        self,
        rewards: Sequence[float],
        rollouts: Sequence[Rollout],
        epochs: int = 1,
        *,
        columns: Mapping[str, Sequence[float]] | None = None,
        missing: Mapping[int, str] | None = None,
    ) -> None:
        self.columns, self.missing = columns or {}, missing or {}
        self.rewards, self.rollouts = list(rewards), list(rollouts)
        self.kl_sum = [0.0] * len(rollouts)
        self.charged = [0.0] * len(rollouts)
        self.advantages: list[Tensor] = []
        self.log_ratios: list[Tensor] = [torch.empty(0)] * len(rollouts)  # of each answer's tokens
        self.sums: dict[Estimator, float] = dict.fromkeys(get_args(Estimator), 0.0)
        self.entropies: list[Tensor] = []
        self.epochs = epochs
        self.losses: dict[str, float] = defaultdict(float)
        self.algorithm_figures: dict[str, float] = defaultdict(float)
        self._pending: list[_Pending] = []
        self._pending_losses: list[tuple[dict[str, float], Mapping[str, Tensor | float]]] = []

    def add(
        self,
        answers: Sequence[int],
        measured: MeasuredBatch,
        *,
        charged_N: Tensor,
        entropy_M: Tensor,
    ) -> None:
        """Add a micro-batch, whose answers have the positions `answers` in the update."""
        log_ratio_M = measured.logps_M - measured.reference_M
        count = len(answers)
        estimates = [
            kl_of_answers(log_ratio_M, measured.answer_M, count, estimator, "sum").sum()
            for estimator in self.sums
        ]
        answer_M, sums_E = measured.answer_M, torch.stack(estimates)
        kl_N = segment_sum(log_ratio_M, answer_M, count)
        self._pending.append(
            _Pending(list(answers), (kl_N, charged_N, sums_E, log_ratio_M, entropy_M.detach()))
        )

    def add_losses(
        self, losses: Mapping[str, Tensor | float], algorithm_figures: Mapping[str, Tensor | float]
    ) -> None:
        """Add a micro-batch's share of each loss term, and the algorithm's figures summed over its
        answers."""
        self._pending_losses.append((self.losses, losses))
        self._pending_losses.append((self.algorithm_figures, algorithm_figures))

    def read(self) -> UpdateStatistics:
        """Move pending statistics to the CPU, once per update, since every read waits for the device."""
        losses = [
            value
            for _, shares in self._pending_losses
            for value in shares.values()
            if isinstance(value, Tensor)
        ]
        read = iter(
            to_cpu(
                [
                    *(tensor for pending in self._pending for tensor in pending.tensors),
                    *self.advantages,
                    *losses,
                ]
            )
        )
        for pending in self._pending:
            kl_N, charged_N, sums_E, log_ratio_M, entropy_M = itertools.islice(read, 5)
            for position, kl, charged in zip(pending.answers, kl_N.tolist(), charged_N.tolist(), strict=True):
                self.kl_sum[position], self.charged[position] = kl, charged
            for estimator, value in zip(self.sums, sums_E.tolist(), strict=True):
                self.sums[estimator] += value
            lengths = [len(self.rollouts[position].completion_ids) for position in pending.answers]
            for position, ratios in zip(pending.answers, torch.split(log_ratio_M, lengths), strict=True):
                self.log_ratios[position] = ratios
            self.entropies.append(entropy_M)
        self.advantages = list(itertools.islice(read, len(self.advantages)))
        for totals, shares in self._pending_losses:
            for name, value in shares.items():
                totals[name] += float(next(read) if isinstance(value, Tensor) else value)
        self._pending.clear()
        self._pending_losses.clear()
        return self

    def figures(self, coefficient: float) -> dict[str, float]:
        """Figures under their names in metrics.jsonl.

        Args:
            coefficient: of the KL in this update.
        """
        self.read()
        count = len(self.rollouts)
        lengths = torch.tensor([float(len(rollout.completion_ids)) for rollout in self.rollouts])
        rewards = torch.tensor(self.rewards)
        known = ~torch.isnan(rewards)
        log_ratio = torch.cat(self.log_ratios)
        charged = sum(self.charged) / count
        figures = {
            **{name: value / self.epochs for name, value in self.losses.items()},
            "reward/mean": rewards[known].mean().item(),
            "reward/std": rewards[known].std(correction=0).item(),
            "reward/missing": count - int(known.sum()),
            **{
                f"reward/{name}": torch.tensor(column).nanmean().item()
                for name, column in self.columns.items()
            },
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
        return figures | {name: value / count / self.epochs for name, value in self.algorithm_figures.items()}

    def samples(
        self, step: int, prompts: Sequence[Prompt], golds: Sequence[float | None]
    ) -> list[Mapping[str, Any]]:
        """The update's lines of samples.jsonl."""
        self.read()
        return [
            {
                "step": step,
                "prompt": [m.as_dict() for m in prompt.messages],
                "answer": rollout.text,
                "reward": reward,
                **{f"reward/{name}": column[position] for name, column in self.columns.items()},
                **({"missing": self.missing[position]} if position in self.missing else {}),
                "gold": gold,
                "kl": kl,
                "length": len(rollout.completion_ids),
                "finished": rollout.finished,
            }
            for position, (prompt, rollout, reward, gold, kl) in enumerate(
                zip(prompts, self.rollouts, self.rewards, golds, self.kl_sum, strict=True)
            )
        ]


def _correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's r; 0 where one of the two is constant or empty."""
    if not len(a) or a.std(correction=0) == 0 or b.std(correction=0) == 0:
        return 0.0
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def peak_memory_gib() -> float:
    """Peak memory in GiB: of the GPU, else of this process, an in-process engine included."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def reserved_memory() -> dict[str, float]:
    """Peak memory that torch's allocator reserved on a GPU, fragments included; empty on a CPU."""
    if not torch.cuda.is_available():
        return {}
    return {"memory/reserved_gib": torch.cuda.max_memory_reserved() / 2**30}


def gold_scores(prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> list[float | None]:
    """The gold score of each answer; None where its prompt has no check."""
    return [
        None if prompt.check is None else gold_score(prompt.check, rollout.text)
        for prompt, rollout in zip(prompts, rollouts, strict=True)
    ]


def spread_share(rewards: Sequence[float], group: int) -> float:
    """Share of groups whose rewards are not all equal; the rewards of the others give no gradient.

    Args:
        rewards: before shaping, in whole groups.
        group: answers of a group.
    """
    groups = [rewards[start : start + group] for start in range(0, len(rewards), group)]
    known = [[reward for reward in rewards if math.isfinite(reward)] for rewards in groups]
    return sum(len(set(rewards)) > 1 for rewards in known) / len(groups)


def order_agreement(rewards: Sequence[float], others: Sequence[float], group: int) -> float | None:
    """Share of pairs of answers to one prompt that two rewards order alike; None where no pair is left.

        pairs (i, j) of a group with r_i != r_j and s_i != s_j;   alike where (r_i > r_j) == (s_i > s_j)

    A pair with a missing reward (NaN), or with equal values of either reward, is left out.
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


def gather_statistics(local: UpdateStatistics) -> UpdateStatistics:
    """The statistics of all ranks, in the order of the ranks."""
    return merge_statistics(processes.all_gather(local.read()))


def gather_probes(local: EngineProbe) -> EngineProbe:
    """The engine comparisons of all ranks."""
    return merge_probes(processes.all_gather(local.read()))


def reduce_times(local: Mapping[str, float]) -> dict[str, float]:
    """Figures of all ranks, see `merge_figures`."""
    return merge_figures(processes.all_gather(local))


def merge_figures(by_rank: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The maximum of times, the sum of `SUMMED`, the mean of `AVERAGED`.

    Of others the first rank's value that has one.
    """
    figures = dict[str, float]()
    for name in dict.fromkeys(name for rank_figures in by_rank for name in rank_figures):
        values = [rank_figures[name] for rank_figures in by_rank if name in rank_figures]
        if name.startswith("time/"):
            figures[name] = max(values)
        elif name in SUMMED:
            figures[name] = sum(values)
        else:
            figures[name] = sum(values) / len(values) if name in AVERAGED else values[0]
    return figures


def merge_statistics(parts: Sequence[UpdateStatistics]) -> UpdateStatistics:
    """Statistics of parts of an update as those of the whole update."""
    parts = [part.read() for part in parts]
    if len(parts) == 1:
        return parts[0]
    names = dict.fromkeys(name for part in parts for name in part.columns)
    missing, offset = dict[int, str](), 0
    for part in parts:
        missing |= {offset + position: reason for position, reason in part.missing.items()}
        offset += len(part.rollouts)
    whole = UpdateStatistics(
        [reward for part in parts for reward in part.rewards],
        [rollout for part in parts for rollout in part.rollouts],
        parts[0].epochs,
        columns={name: [value for part in parts for value in part.columns[name]] for name in names},
        missing=missing,
    )
    whole.kl_sum = [value for part in parts for value in part.kl_sum]
    whole.charged = [value for part in parts for value in part.charged]
    whole.log_ratios = [log_ratio_T for part in parts for log_ratio_T in part.log_ratios]
    for part in parts:
        whole.advantages += part.advantages
        whole.entropies += part.entropies
        whole.add_losses(part.losses, part.algorithm_figures)
        for estimator, value in part.sums.items():
            whole.sums[estimator] += value
    return whole.read()


def merge_probes(parts: Sequence[EngineProbe]) -> EngineProbe:
    """Engine comparisons of parts of an update as those of the whole update."""
    if len(parts) == 1:
        return parts[0]
    whole = EngineProbe(parts[0].level, parts[0].cap)
    for part in parts:
        whole.to_policy += part.to_policy
        whole.to_reference += part.to_reference
        whole.weights += part.weights
    samplers = [part.sampler for part in parts if part.sampler is not None]
    whole.sampler = merge_probes(samplers) if samplers else None
    return whole
