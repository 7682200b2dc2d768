"""Statistics of one update: accumulated per micro-batch, logged under the names of metrics.jsonl.

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
from policy.update.losses import Estimator, kl_of_answers, kl_of_tokens
from rlhf.core.records import Prompt, Rollout
from rlhf.data.checks import gold_score
from rlhf.kernels.tensors import segment_sum, to_cpu

KL_NAMES: Mapping[Estimator, tuple[str, str]] = {
    "k1": ("kl/mean", "kl/sum"),
    "abs": ("kl/abs_mean", "kl/abs_sum"),
    "k2": ("kl/k2_mean", "kl/k2_sum"),
    "k3": ("kl/k3_mean", "kl/k3_sum"),
}
"""Names of each estimator's mean over all tokens of the update, and of its per-answer sum's mean."""
LOG_RATIO = "token_kl"
"""Name of log(pi / reference) of each token in nats."""


@dataclass(frozen=True)
class _Pending:
    """Statistics of a micro-batch that are still on its device. Shapes: E estimators."""

    answers: list[int]
    tensors: tuple[Tensor, ...]
    """kl_N, charged_N, sums_E and entropy_M; tokens in the order of the answers."""
    tokens: Mapping[str, Tensor]
    """Figures of each token by name, see `UpdateStatistics.tokens`."""


class UpdateStatistics:
    """Accumulates the statistics of one update.

    Args:
        rewards: of each answer before shaping; NaN where there is none.
        rollouts: in the same order.
        epochs: passes over the answers; losses and the algorithm's figures are means over them.
        columns: further rewards of each answer by name, which are only logged.
        missing: why an answer has no reward, by its position.

    `tokens` has figures of each answer's tokens by their names in samples.jsonl: `token_kl`, log(pi /
    reference) in nats; `token_reward`, minus the KL penalty, plus the answer's reward at its last token, NaN
    where the answer takes no part; with a critic `token_value`, the value before the token.
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
        self.tokens: list[dict[str, Tensor]] = [{LOG_RATIO: torch.empty(0)} for _ in rollouts]
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
        rewards_M: Tensor,
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
        tokens = {LOG_RATIO: log_ratio_M, "token_reward": rewards_M}
        if measured.values_M is not None:
            tokens["token_value"] = measured.values_M
        self._pending.append(_Pending(list(answers), (kl_N, charged_N, sums_E, entropy_M.detach()), tokens))

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
                    *(t for pending in self._pending for t in (*pending.tensors, *pending.tokens.values())),
                    *self.advantages,
                    *losses,
                ]
            )
        )
        for pending in self._pending:
            kl_N, charged_N, sums_E, entropy_M = itertools.islice(read, 4)
            for position, kl, charged in zip(pending.answers, kl_N.tolist(), charged_N.tolist(), strict=True):
                self.kl_sum[position], self.charged[position] = kl, charged
            for estimator, value in zip(self.sums, sums_E.tolist(), strict=True):
                self.sums[estimator] += value
            lengths = [len(self.rollouts[position].completion_ids) for position in pending.answers]
            for name in pending.tokens:
                for position, values in zip(pending.answers, torch.split(next(read), lengths), strict=True):
                    self.tokens[position][name] = values
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
        log_ratio = torch.cat([tokens[LOG_RATIO] for tokens in self.tokens])
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


def memory_figures() -> dict[str, float]:
    """Peak memory of this process in GiB: of its GPU, also with fragments, else an in-process engine
    included."""
    if torch.cuda.is_available():
        return {
            "memory/peak_gib": torch.cuda.max_memory_allocated() / 2**30,
            "memory/reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
        }
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 2**10
    return {"memory/peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}


def gold_scores(prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> list[float | None]:
    """The gold score of each answer; None where its prompt has no check."""
    return [
        None if prompt.check is None else gold_score(prompt.check, rollout.text)
        for prompt, rollout in zip(prompts, rollouts, strict=True)
    ]


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
