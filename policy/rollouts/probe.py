"""Compares the engine's log-probabilities with the trainer's on every batch.

It costs nothing: the trainer computes the log-probabilities of all sampled tokens for the loss.

Shapes: M tokens of all answers of a micro-batch.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from policy.update.losses import Level, importance_weights
from rlhf.core.errors import EngineError
from rlhf.kernels.tensors import to_cpu

NEARER = 0.5
"""An engine whose distance to the reference is below this share of that to the policy samples from the
reference."""


class EngineProbe:
    """Accumulates differences per micro-batch; an engine that reports no log-probabilities is not compared.

    Args:
        level: of the logged importance weights.
        cap: their upper bound, whether or not they are used.

    Attributes:
        sampler: where the answers come from an older policy, the comparison with that policy's
            log-probabilities: the difference of the two policies is no error of the engine.
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
        """Add a micro-batch: log-probabilities of engine, trainer and reference."""
        if engine_M is not None:
            self.to_policy.append(logps_M - engine_M)
            self.to_reference.append(reference_M - engine_M)
            self.weights.append(
                importance_weights(logps_M, engine_M, answer_M, answers, self.level, math.inf)
            )

    def read(self) -> EngineProbe:
        """Move the tensors to the CPU, once per update, since every read waits for the device."""
        lists = (self.to_policy, self.to_reference, self.weights)
        read = iter(to_cpu([tensor for tensors in lists for tensor in tensors]))
        for tensors in lists:
            tensors[:] = itertools.islice(read, len(tensors))
        if self.sampler is not None:
            self.sampler.read()
        return self

    def figures(self) -> dict[str, float]:
        """Figures under their names in metrics.jsonl; empty for an engine that is not compared.

        Mean and maximum of the importance weights are over tokens, before truncation.
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
            at_sampling = self.sampler.figures()
            engine = {name: at_sampling[name] for name in engine} | lagged
        return engine | {
            "importance/mean": weights.mean().item(),
            "importance/max": weights.max().item(),
            "importance/truncated_share": (weights > self.cap).float().mean().item(),
        }

    def check(self, bound: float, when: str) -> None:
        """Check that engine and trainer agree.

        Args:
            when: for the message, such as `at update 3`.

        Raises:
            EngineError: the mean |difference| exceeds the bound or is NaN, or the engine samples from the
                reference.
        """
        figures = self.figures()
        if not figures:
            return
        difference, reference = figures["engine/logprob_difference"], figures["engine/reference_difference"]
        if not difference <= bound:  # NaN too
            raise EngineError(
                f"Engine and trainer disagree {when}: mean |difference of log-probabilities| is "
                f"{difference:.3f}.",
                allowed=f"at most {bound} (rollouts.logprob_bound)",
                fix="the policy did not reach the engine, or base and dtype differ between the two",
            )
        if reference < NEARER * difference:
            raise EngineError(
                f"The engine samples from the reference {when}: its log-probabilities are {reference:.2g} "
                f"from those of the reference, and {difference:.2g} from the policy's.",
                fix="the policy did not reach the engine; look for its message above",
            )
