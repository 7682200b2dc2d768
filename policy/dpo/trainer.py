"""TRL's DPOTrainer with packed pairs, this project's log-probabilities, and the paper's three losses.

One batch of the trainer is one whole update, packed into rows of `tokens_per_batch` tokens. A prompt and its
two answers share a row, with the prompt computed once. The reference is the base without the adapter. Every
row is divided by the pairs of the whole update, so the token budget changes no gradient.

Replaced in TRL's trainer: batches, log-probabilities, loss, evaluation, log and checkpoints. Kept: loop,
optimizer, schedule, launching.

Shapes: B pairs of a row, N = 2B answers, M tokens of all answers.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel
from transformers.trainer_callback import TrainerCallback
from trl import DPOConfig as TRLDPOConfig
from trl import DPOTrainer

from policy.dpo.data import TokenizedPair
from policy.dpo.losses import dpo, implicit_rewards
from policy.update.forward import MicroBatch, pack_groups, reference_logps, token_logps
from rlhf.config.dpo import DPOLoss
from rlhf.core.errors import DivergenceError
from rlhf.distributed import processes
from rlhf.distributed.sharding import finish_kernels
from rlhf.kernels import adapter_layers
from rlhf.kernels.packing_check import decide_packing, one_per_row
from rlhf.kernels.tensors import read_numbers, to_device
from rlhf.models.forwards import enable_packed_logprobs
from rlhf.models.loading import LoraConfig, base_of, upcast_trainable
from rlhf.runs.checkpoints import SafeCheckpoints
from rlhf.runs.gpu_memory import phase
from rlhf.tracking.recording import LogUpdate
from rlhf.training.arguments import single_device, trainer_settings
from rlhf.training.mixin import TrainerMixin

STAGE = "dpo"
Sums = dict[str, Tensor | float]
"""Sums over the pairs of a row, on the device."""


class PackedDPOTrainer(TrainerMixin, SafeCheckpoints, DPOTrainer):
    """Trains a fresh adapter on pairs.

    Args:
        model: the causal base; TRL adds the adapter.
        arguments: from `trainer_arguments`.
        adapter: LoraConfig of the adapter.
        tokenizer: with the padding token set.
        loss, beta: of the config.
        packing: whether sequences may share a row.
        pairs: training pairs.
        order: the pair of each draw; updates x batch size. It is fixed beforehand, so that a resumed run
            needs no sampler state.
        validation: held-out pairs; may be empty.
        tokens_per_batch: token budget of a row.
        record: receives the figures.
        callbacks: the user's own.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        arguments: TRLDPOConfig,
        adapter: LoraConfig,
        tokenizer: Any,
        *,
        loss: DPOLoss,
        packing: bool,
        pairs: Sequence[TokenizedPair],
        order: Sequence[int],
        validation: Sequence[TokenizedPair],
        tokens_per_batch: int,
        record: LogUpdate,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.pairs, self.validation, self.kind = pairs, validation, loss
        self.tokens_per_batch, self.record = tokens_per_batch, record
        self.stage_name, self.step_offset = STAGE, 0
        self.figures: dict[str, float | str] = {}
        super().__init__(
            model=model,
            args=arguments,
            data_collator=lambda rows: {"pairs": [self.pairs[row["pair"]] for row in rows]},
            train_dataset=Dataset.from_dict({"pair": list(order)}),
            eval_dataset=Dataset.from_dict({"pair": list(range(len(validation)))}) if validation else None,
            processing_class=tokenizer,
            peft_config=adapter,
            callbacks=list(callbacks),
        )
        trunk = base_of(self.model)
        decide_packing(trunk, wanted=packing, logits=True)
        enable_packed_logprobs(trunk, temperature=1.0)
        upcast_trainable(self.model)
        adapter_layers.enable(self.model)

    @phase("update")
    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: object = None) -> Tensor:
        """One update: forward and backward over each packed row of the pairs."""
        started = time.perf_counter()
        model.train()
        pairs: list[TokenizedPair] = inputs["pairs"]
        count = self._count(pairs)
        scale = self.accelerator.num_processes  # gradients are averaged over processes; our losses are sums
        rows, batches = list[Sums](), self._packed(pairs)
        for number, batch in enumerate(batches):
            with self.accumulate(model, last=number == len(batches) - 1):
                with self.compute_loss_context_manager():
                    loss, sums = self._row_loss(model, batch, pairs, count)
                self.backward(loss * scale)
            rows.append(sums)
        finish_kernels()
        figures = self._means(rows, count)
        self.figures = {"stage": STAGE, **figures, "time/step": time.perf_counter() - started}
        self._require_finite(figures["loss/total"])
        return torch.tensor(figures["loss/total"], device=self.args.device)

    def _require_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise DivergenceError(
                f"The loss is {loss} at update {self.state.global_step + 1}.",
                fix="lower optimizer.learning_rate or beta, and look at the pairs of this update in the data",
            )

    def _packed(self, pairs: Sequence[TokenizedPair]) -> list[MicroBatch]:
        return pack_groups(
            [pair.answers for pair in pairs],
            self.tokens_per_batch,
            self.processing_class.pad_token_id,
            self.args.device,
            one_per_row=one_per_row(base_of(self.accelerator.unwrap_model(self.model))),
        )

    def _rewards(self, model: Any, batch: MicroBatch) -> Tensor:
        """Implicit rewards of a row's answers; the reference's pass comes first and keeps no activations."""
        reference_M = reference_logps(model, self.accelerator.unwrap_model(self.model), batch)
        logps_M, _, answer_M = token_logps(model, batch.packed, entropy=False)
        return implicit_rewards(logps_M, reference_M, answer_M, len(batch.answers), self.beta)

    def _row_loss(
        self, model: Any, batch: MicroBatch, pairs: Sequence[TokenizedPair], count: float
    ) -> tuple[Tensor, Sums]:
        """The row's part of the update's loss, and sums for the log, which stay on the device."""
        rewards_N = self._rewards(model, batch)
        members = members_of(batch, pairs)
        strength_B = to_device(torch.tensor([float(pair.strength) for pair in members]), rewards_N.device)
        loss = dpo(rewards_N, strength_B, self.kind, count)
        rewards_B2 = rewards_N.detach().reshape(-1, 2)
        margin_B = rewards_B2[:, 0] - rewards_B2[:, 1]
        return loss, {
            "loss/total": loss.detach(),
            "reward/chosen": rewards_B2[:, 0].sum(),
            "reward/rejected": rewards_B2[:, 1].sum(),
            "reward/margin": margin_B.sum(),
            "reward/accuracy": (margin_B > 0).sum(),  # a tie is wrong, as in RewardBench
            "tokens/useful": batch.packed.useful_tokens,
            "tokens/computed": batch.packed.computed_tokens,
        }

    def _count(self, pairs: Sequence[TokenizedPair]) -> float:
        """The pairs of the update over all processes."""
        local = torch.tensor(float(len(pairs)), device=self.args.device)
        return float(self.accelerator.reduce(local, reduction="sum"))

    def _means(self, rows: Sequence[Sums], count: float) -> dict[str, float]:
        """The figures of metrics.jsonl out of the sums over an update and all processes."""
        names = (*MEANS, *TOTALS)
        numbers = iter(read_numbers([row[name] for name in names for row in rows]))  # in one transfer
        local = torch.tensor(
            [sum(itertools.islice(numbers, len(rows))) for _ in names],
            dtype=torch.float64,
            device=self.args.device,
        )
        total = dict(zip(names, self.accelerator.reduce(local, reduction="sum").tolist(), strict=True))
        return {name: total[name] / (count if name in MEANS[1:] else 1) for name in names}

    @torch.no_grad()
    @phase("validation")
    def evaluate(self, *_: object, **__: object) -> dict[str, float]:
        """Loss, accuracy and margin on the held-out pairs."""
        self.model.eval()
        local = processes.shard(self.validation)
        count = self._count(local)
        rows = []
        for batch in self._packed(local) if local else ():
            with self.compute_loss_context_manager():
                rows.append(self._row_loss(self.model, batch, local, count)[1])
        self.model.train()
        figures = self._means(rows, count)
        shown = {
            "validation/loss": figures["loss/total"],
            "validation/accuracy": figures["reward/accuracy"],
            "validation/margin": figures["reward/margin"],
        }
        self.record(self.state.global_step, shown)
        metrics = {"eval_loss": figures["loss/total"]}
        # Without this the trainer evaluates once more at the end.
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def margins(self, pairs: Sequence[TokenizedPair]) -> list[float]:
        """Implicit reward of the chosen answer minus that of the rejected one, for each pair.

        All processes must call; each computes all pairs.
        """
        self.model.eval()
        margins = [0.0] * len(pairs)
        for batch in self._packed(pairs) if pairs else ():
            with self.compute_loss_context_manager():
                chosen_B, rejected_B = self._rewards(self.model, batch).reshape(-1, 2).unbind(1)
            for place, margin in zip(batch.answers[::2], (chosen_B - rejected_B).tolist(), strict=True):
                margins[place // 2] = margin
        self.model.train()
        return margins


MEANS = ("loss/total", "reward/chosen", "reward/rejected", "reward/margin", "reward/accuracy")
"""Figures of pairs: the loss is a share of the update's mean already, the others are sums."""
TOTALS = ("tokens/useful", "tokens/computed")


def members_of(batch: MicroBatch, pairs: Sequence[TokenizedPair]) -> list[TokenizedPair]:
    """The pairs of a row, in its order; answers 2k and 2k + 1 of an update are those of pair k."""
    return [pairs[place // 2] for place in batch.answers[::2]]


def trainer_arguments(*, beta: float, validate_every: int, has_validation: bool, **settings: Any) -> Any:
    """The run's settings as TRL's; `settings` are those of `trainer_settings`."""
    return single_device(
        TRLDPOConfig(
            **trainer_settings(**settings),
            beta=beta,
            eval_strategy="steps" if has_validation else "no",
            eval_steps=validate_every,
            max_length=None,
        )
    )
