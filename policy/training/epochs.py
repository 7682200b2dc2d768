"""The forward and backward passes of an update, epoch by epoch, and the optimizer; part of `PolicyTrainer`.

Without a critic the pass that is differentiated also measures its micro-batch. With a critic all
micro-batches are measured first, since advantages are whitened over the update; the critic's pass over a
micro-batch follows the policy's.

Shapes: N answers, M tokens of the answers of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from policy.algorithms.protocol import Algorithm
from policy.training.critic import add_critic_group, split_parameters
from policy.update.forward import (
    MicroBatch,
    dummy_passes,
    measuring_passes,
    reference_logps,
    token_logps,
    token_values,
)
from policy.update.step import Update
from rlhf.config.algorithm import CriticConfig
from rlhf.distributed.sharding import missing_passes
from rlhf.models.names import CRITIC
from rlhf.models.roles import role
from rlhf.training.mixin import TrainerMixin


class UpdateEpochs(TrainerMixin):
    """Runs the epochs of an update; mixed into transformers' Trainer, whose attributes and methods it uses.

    Attributes:
        frozen: a frozen copy of the base, where all weights are trained; else None.
    """

    algorithm: Algorithm
    critic: CriticConfig | None
    frozen: Any | None
    compute_loss_context_manager: Any

    @property
    def reference(self) -> Any:
        """The model that computes reference and rewards: the policy's own base, or the frozen copy."""
        return self.model if self.frozen is None else self.frozen

    def run_epochs(
        self, model: Any, micro_batches: Sequence[MicroBatch], rewards_N: Tensor, update: Update
    ) -> None:
        """Forward and backward passes of all epochs; the optimizer step after the last is transformers' own.

        Args:
            model: as accelerate wrapped it.
            rewards_N: shaped, of all answers of this rank, on the CPU; NaN where an answer takes no part.
        """
        has_critic = self.algorithm.critic is not None
        missing = missing_passes(len(micro_batches), model)
        if has_critic:
            self._measure(model, micro_batches, missing, rewards_N, update)
        for epoch in range(self.algorithm.epochs):
            if epoch:
                self._step_between_epochs(model)
            measures = epoch == 0 and not has_critic
            self._dummy_passes(model, micro_batches[0], missing, reference=measures)
            if measures:
                self._measuring_epoch(model, micro_batches, rewards_N, update)
            else:
                self._epoch(model, micro_batches, update)

    def _measure(
        self,
        model: Any,
        micro_batches: Sequence[MicroBatch],
        missing: int,
        rewards_N: Tensor,
        update: Update,
    ) -> None:
        """Measure all micro-batches before the first loss."""
        for _ in range(missing):
            with self.compute_loss_context_manager():
                measuring_passes(model, self.model, micro_batches[0])
        measured = []
        for micro_batch in micro_batches:
            with self.compute_loss_context_manager():
                passes = measuring_passes(model, self.model, micro_batch)
            measured.append(update.measure(micro_batch, rewards_N[micro_batch.answers], *passes))
        update.compute_advantages(measured)

    def _measuring_epoch(
        self, model: Any, micro_batches: Sequence[MicroBatch], rewards_N: Tensor, update: Update
    ) -> None:
        """The first epoch without a critic: each micro-batch is measured by the pass that is
        differentiated."""
        for index, micro_batch in enumerate(micro_batches):
            with self.accumulate(model, last=index == len(micro_batches) - 1):
                with self.compute_loss_context_manager():
                    logps_M, entropy_M, answer_M = token_logps(model, micro_batch.packed)
                    reference_M = reference_logps(*self._reference_pair(model), micro_batch)
                passes = (logps_M.detach(), reference_M, entropy_M, answer_M)
                measured = update.measure(micro_batch, rewards_N[micro_batch.answers], *passes)
                update.compute_advantages([measured])
                self._backward_sum(update.policy_loss(index, micro_batch, logps_M))

    def _epoch(self, model: Any, micro_batches: Sequence[MicroBatch], update: Update) -> None:
        """An epoch over measured micro-batches, with the critic's loss where there is a critic."""
        for index, micro_batch in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            with self.accumulate(model, last=last):
                with self.compute_loss_context_manager():
                    logps_M, _, _ = token_logps(model, micro_batch.packed)
                self._backward_sum(update.policy_loss(index, micro_batch, logps_M))
            if self.algorithm.critic is not None:
                with self.accumulate(model, last=last), role(self.model, CRITIC):
                    with self.compute_loss_context_manager():
                        values_M = token_values(model, micro_batch.packed)
                    self._backward_sum(update.value_loss(index, values_M))

    def _dummy_passes(self, model: Any, micro_batch: MicroBatch, count: int, *, reference: bool) -> None:
        """Passes without effect: other ranks have `count` more micro-batches of a sharded model."""
        for _ in range(count):
            with self.accumulate(model, last=False), self.compute_loss_context_manager():
                dummy_passes(
                    model,
                    self.model,
                    micro_batch,
                    self.backward,
                    reference=self._reference_pair(model) if reference else None,
                    has_critic=self.algorithm.critic is not None,
                )

    def _reference_pair(self, model: Any) -> tuple[Any, Any]:
        """The reference as it is called (wrapped), and as its roles are switched (unwrapped)."""
        return (model if self.frozen is None else self.frozen), self.reference

    def _backward_sum(self, loss: Tensor) -> None:
        """Backward of a micro-batch's share: ranks average gradients, and shares are summed."""
        self.backward(loss * self.accelerator.num_processes)

    def _step_between_epochs(self, model: Any) -> None:
        """The optimizer step that transformers makes after the last epoch.

        The learning rate changes by update.
        """
        self._clip_grad_norm(model)
        self.optimizer.step()
        model.zero_grad()

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """transformers' optimizer, with a parameter group and a learning rate for the critic."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if self.critic is not None:
            trained = self.model if model is None else model
            add_critic_group(optimizer, trained, self.critic.learning_rate, self.args.weight_decay)
        return optimizer

    def _clip_grad_norm(self, model: Any) -> Any:
        """Clip policy and critic each by its own norm and return the policy's.

        In the critic's warm-up the policy has no step.
        """
        if self.critic is None:
            return super()._clip_grad_norm(model)
        policy, critic = split_parameters(model)
        skipped = policy if self.state.global_step < self.critic.warmup_steps else []
        return self.clip_by_group(model, (critic, policy), skipped)[1]
