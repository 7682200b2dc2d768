"""One update: measure its micro-batches under the policy that sampled, compute advantages, then losses; and
its checks.

Shapes: N answers of a micro-batch, M their tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from policy.algorithms.protocol import Advantages, Algorithm, AllReduce, MeasuredBatch
from policy.rollouts.probe import EngineProbe
from policy.update.advantages import token_rewards
from policy.update.forward import MicroBatch
from policy.update.losses import engine_logps, importance_weights, kl_charges, kl_loss
from policy.update.statistics import UpdateStatistics
from rlhf.config.algorithm import KLConfig
from rlhf.config.rollouts import ImportanceConfig
from rlhf.core.errors import DivergenceError
from rlhf.kernels.tensors import read_numbers, segment_sum, to_device

LARGE_REWARD = 1e6
"""Rewards beyond this are named as the cause when a loss or a gradient is not finite."""
START_BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Largest mean |log-ratio| of policy to reference before the first update, by the dtype of matrix products on
a GPU.

There the kernels with and without gradients may differ, and bfloat16 rounds a log-probability by about
1e-2. An estimate from its 8 bits of significand; `benchmarks/gpu_check.py` measures the difference."""


@dataclass(frozen=True)
class Update:
    """Losses and statistics of one update; call `measure`, then `compute_advantages`, then the losses of each
    epoch.

    Args:
        algorithm: turns rewards into a loss.
        kl: estimator, reduction and placement of the KL.
        coefficient: of the KL in this update.
        importance: correction of the mismatch between engine and trainer; None is no correction.
        group_size: answers to a prompt.
        loss_denominator: of the algorithm's terms, over the whole update and all ranks.
        counted: answers that take part, over the whole update and all ranks.
        all_reduce: sums a tensor over all ranks.
    """

    algorithm: Algorithm
    kl: KLConfig
    coefficient: float
    importance: ImportanceConfig | None
    group_size: int
    loss_denominator: float
    counted: float
    statistics: UpdateStatistics
    probe: EngineProbe
    all_reduce: AllReduce
    measured: list[tuple[MeasuredBatch, Advantages]] = field(default_factory=list)
    """Micro-batches with their advantages, in order."""
    algorithm_figures: dict[str, Tensor | float] = field(default_factory=dict)
    """The algorithm's figures of the whole update."""

    def measure(
        self,
        micro_batch: MicroBatch,
        rewards_N: Tensor,
        logps_M: Tensor,
        reference_M: Tensor,
        entropy_M: Tensor,
        answer_M: Tensor,
        values_M: Tensor | None = None,
    ) -> MeasuredBatch:
        """The constants of a micro-batch: KL penalties, importance weights and what the passes returned.

        Args:
            rewards_N: on the CPU.
        """
        answers = len(micro_batch.answers)
        engine_M = engine_logps(micro_batch.rollouts, like=logps_M)
        self.probe.add(engine_M, logps_M, reference_M, answer_M, answers)
        weights_M = None
        if self.importance is not None and engine_M is not None:
            level, cap = self.importance.level, self.importance.cap
            weights_M = importance_weights(logps_M, engine_M, answer_M, answers, level, cap)
        log_ratio_M = logps_M - reference_M
        charged_M = kl_charges(log_ratio_M, answer_M, answers, self.kl.estimator, self.kl.reduction)
        in_reward = self.kl.placement == "reward"
        finished = [rollout.finished for rollout in micro_batch.rollouts]
        measured = MeasuredBatch(
            rewards_N=to_device(rewards_N, logps_M.device),
            penalty_M=self.coefficient * charged_M if in_reward else torch.zeros_like(charged_M),
            finished_N=to_device(torch.tensor(finished), logps_M.device),
            answer_M=answer_M,
            logps_M=logps_M,
            reference_M=reference_M,
            importance_M=weights_M,
            group_size=self.group_size,
            values_M=values_M,
        )
        charged_N = segment_sum(charged_M, answer_M, answers)
        rewards_N, counted_N = self.algorithm.counted_rewards(measured)
        counted_rewards_N = rewards_N.masked_fill(~counted_N, math.nan)
        self.statistics.add(
            micro_batch.answers,
            measured,
            charged_N=charged_N,
            entropy_M=entropy_M,
            rewards_M=token_rewards(counted_rewards_N, measured.penalty_M, answer_M),
        )
        return measured

    def compute_advantages(self, batches: Sequence[MeasuredBatch]) -> None:
        """Compute and keep the advantages of some micro-batches: of all for a critic, else of one before its
        loss."""
        advantages, figures = self.algorithm.compute_advantages(batches, self.all_reduce)
        self.measured.extend(zip(batches, advantages, strict=True))
        self.algorithm_figures.update(figures)
        self.statistics.advantages.extend(result.values for result in advantages)

    def figures(self) -> dict[str, float]:
        """The algorithm's figures of the whole update, read from the device."""
        numbers = read_numbers(list(self.algorithm_figures.values()))
        return dict(zip(self.algorithm_figures, numbers, strict=True))

    def policy_loss(self, index: int, micro_batch: MicroBatch, logps_M: Tensor) -> Tensor:
        """A micro-batch's share of the policy's loss, with the KL term where the config places it in the
        loss."""
        measured, advantages = self.measured[index]
        objective = self.algorithm.objective(logps_M, measured, advantages.values, self.loss_denominator)
        loss, terms = objective.loss, {"loss/policy": objective.loss.detach()}
        if self.kl.placement == "loss":
            counted_N = to_device(torch.tensor(self.algorithm.counted(micro_batch.rollouts)), logps_M.device)
            kl = self.coefficient * kl_loss(
                logps_M,
                measured.reference_M,
                measured.answer_M,
                counted_N & measured.known_N,
                self.kl.estimator,
                self.kl.reduction,
                self.counted,
            )
            loss, terms["loss/kl"] = loss + kl, kl.detach()
        self.statistics.add_losses(terms, objective.figures)
        return loss

    def value_loss(self, index: int, values_M: Tensor) -> Tensor:
        """A micro-batch's share of the critic's loss."""
        critic, (measured, advantages) = self.algorithm.critic, self.measured[index]
        assert critic is not None  # called only for algorithms with a critic, which compute returns
        assert advantages.returns_M is not None
        objective = critic.objective(values_M, measured, advantages.returns_M, self.loss_denominator)
        self.statistics.add_losses({"loss/value": objective.loss.detach()}, objective.figures)
        return objective.loss


def start_bound(dtype: torch.dtype, *, on_gpu: bool) -> float:
    """The bound of `START_BOUNDS` for a device: on a CPU both passes run the same kernels, whatever the
    dtype."""
    return START_BOUNDS[dtype] if on_gpu else START_BOUNDS[torch.float32]


def check_update(
    number: int,
    figures: Mapping[str, float],
    bound: float = START_BOUNDS[torch.float32],
    *,
    rewards: Sequence[float] = (),
) -> None:
    """Check that losses are finite and that at update 1 the policy equals the reference to within `bound`.

    Raises:
        DivergenceError: one of the two does not hold.
    """
    for name in ("loss/policy", "loss/value", "loss/kl"):
        if not math.isfinite(figures.get(name, 0.0)):
            what = f"The {name.removeprefix('loss/')} loss is {figures[name]}"
            raise divergence_error(what, number, rewards)
    if number == 1 and not figures["kl/abs_mean"] <= bound:
        raise DivergenceError(
            "Before the first update the policy and the reference give different log-probabilities: mean "
            f"|log-ratio| is {figures['kl/abs_mean']:.2g}.",
            allowed=f"at most {bound:g}: their weights are still equal, so only rounding may differ",
            fix="model.fast_layers=false, which computes both by transformers' and PEFT's own layers "
            "(please report the base); if it still differs, model.packing=false",
        )


def divergence_error(what: str, update: int, rewards: Sequence[float]) -> DivergenceError:
    """The error for a loss or gradient that is not finite.

    It names rewards beyond `LARGE_REWARD` as the cause.
    """
    known = [reward for reward in rewards if math.isfinite(reward)]
    largest = max(map(abs, known), default=0.0)
    if largest > LARGE_REWARD:
        return DivergenceError(
            f"{what} at update {update}: its rewards range from {min(known):.3g} to {max(known):.3g}.",
            allowed=f"rewards whose squares float32 can sum; up to {LARGE_REWARD:g} is safe",
            fix="return smaller rewards, or clip them in a new run: reward_shaping.clip=[-1e6,1e6]",
        )
    return DivergenceError(
        f"{what} at update {update}.",
        allowed="a finite number",
        fix="lower optimizer.learning_rate in a new run; samples.jsonl holds the answers of the updates "
        "before",
    )
