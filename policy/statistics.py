"""Figures of one update, gathered row by row. Shapes: N answers of the update, M tokens of a row."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from policy.kl import kl_of_tokens
from rlhf.core.records import Prompt, Rollout
from rlhf.core.tensors import segment_sum


class UpdateStatistics:
    """Collects what the rows of one update computed, and names it.

    Args:
        rewards: one an answer, as the reward model gave them.
        rollouts: the answers, in the same order.
    """

    def __init__(self, rewards: Sequence[float], rollouts: Sequence[Rollout]) -> None:
        self.rewards, self.rollouts = list(rewards), list(rollouts)
        self.kl_sum = [0.0] * len(rollouts)
        self.advantages = [0.0] * len(rollouts)
        self.penalties = [0.0] * len(rollouts)
        self.loss = 0.0
        self.log_ratios: list[Tensor] = []
        self.entropies: list[Tensor] = []
        self.differences: list[Tensor] = []

    def add(
        self,
        answers: Sequence[int],
        *,
        loss: float,
        advantages_N: Tensor,
        penalty_N: Tensor,
        log_ratio_M: Tensor,
        logps_M: Tensor,
        entropy_M: Tensor,
        answer_M: Tensor,
    ) -> None:
        """One packed row; `answers` are its answers' places in the update."""
        self.loss += loss
        kl_N = segment_sum(log_ratio_M, answer_M, len(answers))
        for row, place in enumerate(answers):
            self.kl_sum[place] = float(kl_N[row])
            self.advantages[place] = float(advantages_N[row])
            self.penalties[place] = float(penalty_N[row])
        self.log_ratios.append(log_ratio_M.cpu())
        self.entropies.append(entropy_M.detach().cpu())
        engine = [logprob for place in answers for logprob in self.rollouts[place].logprobs]
        if len(engine) == logps_M.numel():  # an engine may not report them
            self.differences.append((torch.tensor(engine) - logps_M.cpu()).abs())

    def figures(self) -> dict[str, float]:
        """Names as in metrics.jsonl."""
        lengths = torch.tensor([float(len(rollout.completion_ids)) for rollout in self.rollouts])
        rewards = torch.tensor(self.rewards)
        log_ratio = torch.cat(self.log_ratios)
        figures = {
            "loss/policy": self.loss,
            "reward/mean": rewards.mean().item(),
            "reward/std": rewards.std(correction=0).item(),
            "kl/mean": log_ratio.mean().item(),
            "kl/sum": sum(self.kl_sum) / len(self.kl_sum),
            "kl/abs_mean": log_ratio.abs().mean().item(),
            "kl/k2_mean": kl_of_tokens(log_ratio, "k2").mean().item(),
            "kl/k3_mean": kl_of_tokens(log_ratio, "k3").mean().item(),
            "kl/penalty": sum(self.penalties) / len(self.penalties),
            "length/mean": lengths.mean().item(),
            "length/finished_share": sum(r.finished for r in self.rollouts) / len(self.rollouts),
            "length/reward_correlation": _correlation(lengths, rewards),
            "policy/entropy": torch.cat(self.entropies).mean().item(),
            "advantage/std": torch.tensor(self.advantages).std(correction=0).item(),
            "memory/peak_gib": peak_memory_gib(),
        }
        if self.differences:
            difference = torch.cat(self.differences)
            figures["engine/logprob_difference"] = difference.mean().item()
            figures["engine/logprob_difference_max"] = difference.max().item()
        return figures

    def samples(
        self, step: int, prompts: Sequence[Prompt], golds: Sequence[float | None]
    ) -> list[Mapping[str, Any]]:
        """Rows of samples.jsonl."""
        return [
            {
                "step": step,
                "prompt": [{"role": m.role, "content": m.content} for m in prompt.messages],
                "answer": rollout.text,
                "reward": reward,
                "gold": gold,
                "kl": kl,
                "length": len(rollout.completion_ids),
                "finished": rollout.finished,
            }
            for prompt, rollout, reward, gold, kl in zip(
                prompts, self.rollouts, self.rewards, golds, self.kl_sum, strict=True
            )
        ]


def _correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's r; 0 where one of the two is constant."""
    if a.std(correction=0) == 0 or b.std(correction=0) == 0:
        return 0.0
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def peak_memory_gib() -> float:
    """Highest memory so far: of the card where there is one, else of this process (an in-process engine included)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
