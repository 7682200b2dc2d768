"""Does the engine sample from the policy that is trained? Its log-probabilities against the trainer's, after every sync.

The answers themselves are the probe: the trainer computes the log-probabilities of all their tokens anyhow.

Shapes: M tokens of all answers of a row.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from policy.update.importance import Level, importance_weights
from rlhf.core.errors import EngineError

NEARER = 0.5
"""An engine is taken to sample from the reference when it is this much nearer to the reference than to the policy."""


class EngineProbe:
    """Gathers differences row by row; an engine that tells no log-probabilities is not compared.

    Args:
        level: of the importance weights whose figures are kept.
        cap: where they are cut off, or would be.

    Attributes:
        sampler: where the answers are of an older policy, the same with its log-probabilities in place of the trainer's: what
            the two policies differ by is no fault of the engine.
    """

    def __init__(self, level: Level, cap: float) -> None:
        self.level, self.cap = level, cap
        self.sampler: EngineProbe | None = None
        self.to_policy: list[Tensor] = []
        self.to_reference: list[Tensor] = []
        self.weights: list[Tensor] = []

    def add(
        self, engine_M: Tensor | None, logps_M: Tensor, reference_M: Tensor, answer_M: Tensor, answers: int
    ) -> None:
        """One row: the engine's log-probabilities, the trainer's, and those of the reference."""
        if engine_M is not None:
            self.to_policy.append(logps_M - engine_M)
            self.to_reference.append(reference_M - engine_M)
            self.weights.append(
                importance_weights(logps_M, engine_M, answer_M, answers, self.level, math.inf)
            )

    def read(self) -> EngineProbe:
        """Move what the rows left on the device to the CPU: once per update, since every read waits for the device."""
        for tensors in (self.to_policy, self.to_reference, self.weights):
            tensors[:] = [tensor.cpu() for tensor in tensors]
        if self.sampler is not None:
            self.sampler.read()
        return self

    def figures(self) -> dict[str, float]:
        """Names as in metrics.jsonl; empty where there was nothing to compare.

        Mean and maximum of the importance weights are over tokens, before they are cut off.
        """
        if not self.to_policy:
            return {}
        difference, reference, weights = map(torch.cat, (self.to_policy, self.to_reference, self.weights))
        engine = {
            "engine/logprob_difference": difference.abs().mean().item(),
            "engine/logprob_difference_max": difference.abs().max().item(),
            "engine/reference_difference": reference.abs().mean().item(),
        }
        if self.sampler is not None:
            lagged = {"engine/lagged_difference": engine["engine/logprob_difference"]}
            told = self.sampler.figures()
            engine = {name: told[name] for name in engine} | lagged
        return engine | {
            "importance/mean": weights.mean().item(),
            "importance/max": weights.max().item(),
            "importance/truncated_share": (weights > self.cap).float().mean().item(),
        }

    def check(self, bound: float, when: str) -> None:
        """Stop the run where the two disagree.

        Raises:
            EngineError: the mean |difference| is beyond the bound, or no number, or the engine has not got the policy.
        """
        figures = self.figures()
        if not figures:
            return
        difference, reference = figures["engine/logprob_difference"], figures["engine/reference_difference"]
        if not difference <= bound:  # NaN too
            raise EngineError(
                f"Engine and trainer disagree {when}: mean |difference of log-probabilities| is {difference:.3f}.",
                allowed=f"at most {bound} (rollouts.logprob_bound)",
                fix="the policy did not reach the engine, or base and dtype differ between the two",
            )
        if reference < NEARER * difference:
            raise EngineError(
                f"The engine samples from the reference {when}: its log-probabilities are {reference:.2g} from those of "
                f"the reference, and {difference:.2g} from the policy's.",
                fix="the policy did not reach the engine; look for its message above",
            )
