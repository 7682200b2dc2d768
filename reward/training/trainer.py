"""TRL's RewardTrainer with packed batches and the hybrid loss.

One batch of the trainer is one whole update. It is packed into rows of `tokens_per_batch` tokens, and each
row has its own forward and backward pass. Every loss term is divided by its count over the whole update, so
the token budget bounds memory and changes no gradient.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers.trainer_callback import TrainerCallback
from trl import RewardConfig as TRLRewardConfig
from trl import RewardTrainer

from reward.losses import bradley_terry, centering, regression
from reward.training.batches import Item, RewardBatch, batches
from reward.training.figures import RowFigures, sum_rows, update_figures
from rlhf.config.reward import StageConfig
from rlhf.core.errors import DivergenceError
from rlhf.distributed import processes
from rlhf.distributed.sharding import finish_kernels, lockstep
from rlhf.kernels.inputs import packed_inputs
from rlhf.kernels.packing_check import one_per_row
from rlhf.kernels.tensors import to_device
from rlhf.models.loading import PeftModel
from rlhf.runs.checkpoints import SafeCheckpoints, best_file, load_trainable, save_trainable
from rlhf.runs.gpu_memory import phase
from rlhf.tracking.recording import LogUpdate
from rlhf.training.arguments import single_device, trainer_settings
from rlhf.training.mixin import TrainerMixin

REWARD_INDEX = 0  # the first attribute is the reward


class HybridRewardTrainer(TrainerMixin, SafeCheckpoints, RewardTrainer):
    """One stage of reward training.

    Args:
        model: a sequence classifier with packed scores enabled, wrapped by PEFT.
        arguments: from `trainer_arguments`.
        tokenizer: with the padding token set.
        stage: the objective.
        items: training items, in any order.
        order: the index of the item of each draw; its length is updates x batch size. It is fixed beforehand,
            so that a resumed run needs no sampler state.
        validation: held-out items; may be empty.
        tokens_per_batch: token budget of a packed row.
        step_offset: updates of the stages before this one.
        record: receives the figures.
        callbacks: the user's own.
    """

    control: Any  # transformers' own

    def __init__(
        self,
        model: PeftModel,
        arguments: TRLRewardConfig,
        tokenizer: Any,
        *,
        stage: StageConfig,
        items: Sequence[Item],
        order: Sequence[int],
        validation: Sequence[Item],
        tokens_per_batch: int,
        step_offset: int,
        record: LogUpdate,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.stage, self.items, self.validation = stage, items, validation
        self.tokens_per_batch, self.step_offset, self.record = tokens_per_batch, step_offset, record
        self.stage_name = stage.name
        self.figures: dict[str, float | str] = {}
        labels = model.config.id2label
        model.config.num_labels = 1  # TRL accepts one output only; ours has one per attribute
        # Otherwise TRL rounds the trained weights to bfloat16 at the start of every stage.
        model.is_loaded_in_4bit = False
        super().__init__(
            model=model,
            args=arguments,
            data_collator=lambda rows: {"items": [self.items[row["item"]] for row in rows]},
            train_dataset=Dataset.from_dict({"item": list(order)}),
            eval_dataset=Dataset.from_dict({"item": list(range(len(validation)))}) if validation else None,
            processing_class=tokenizer,
            callbacks=list(callbacks),
        )
        del model.is_loaded_in_4bit
        model.config.id2label = labels
        model.config.label2id = {name: index for index, name in labels.items()}

    @phase("update")
    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: object = None) -> Tensor:
        """One update: forward and backward over each packed row of the batch."""
        started = time.perf_counter()
        model.train()
        items: list[Item] = inputs["items"]
        counts = self._counts(items)
        scale = (
            self.accelerator.num_processes
        )  # gradients are averaged over processes, and our losses are sums
        rows: list[RowFigures] = []
        passes = list(lockstep(self._packed(items), model))
        for number, (batch, counted) in enumerate(passes):
            with self.accumulate(model, last=number == len(passes) - 1):
                with self.compute_loss_context_manager():
                    loss, figures = self._row_loss(model, batch, counts)
                self.backward(loss * scale * counted)
            if counted:
                rows.append(figures)
        summary = self._summary(rows, counts)
        finish_kernels()
        self.figures = {**summary, "time/step": time.perf_counter() - started}
        total = self._require_finite(float(summary["loss/total"]))
        return torch.tensor(total, device=self.args.device)

    def _require_finite(self, loss: float) -> float:
        if not math.isfinite(loss):
            raise DivergenceError(
                f"The loss of stage {self.stage.name!r} is {loss} at update {self.state.global_step + 1}.",
                fix="lower stages.N.optimizer.learning_rate, and look at the rows of this update in the data",
            )
        return loss

    def _packed(self, items: Sequence[Item]) -> Iterator[RewardBatch]:
        return batches(
            items,
            self.tokens_per_batch,
            pad_id=self.processing_class.pad_token_id,
            one_per_row=one_per_row(self.accelerator.unwrap_model(self.model).get_base_model()),
        )

    def _row_loss(
        self, model: Any, batch: RewardBatch, counts: Mapping[str, float]
    ) -> tuple[Tensor, RowFigures]:
        """The row's part of the update's loss, and sums for the log, which stay on the device."""
        device = self.args.device
        packed = batch.packed.to(device)
        scores_NA = model(**packed_inputs(packed), score_at=packed.last_tokens_N)
        rewards_N = scores_NA[:, REWARD_INDEX]
        chosen_B = rewards_N[to_device(batch.chosen_B, device)]
        rejected_B = rewards_N[to_device(batch.rejected_B, device)]
        ratings_NA, present_NA = to_device(batch.ratings_NA, device), to_device(batch.present_NA, device)
        mse = regression(scores_NA, ratings_NA, present_NA, counts["ratings"])
        bt = bradley_terry(
            chosen_B,
            rejected_B,
            to_device(batch.strength_B, device),
            self.stage.preference_loss,
            counts["pairs"],
        )
        centre = centering(chosen_B, rejected_B, counts["pairs"])
        loss = self.stage.regression_weight * mse + self.stage.preference_weight * bt
        if self.stage.centering_weight:
            loss = loss + self.stage.centering_weight * centre
        margin_B = (chosen_B - rejected_B).detach()
        figures: RowFigures = {
            "loss/total": loss.detach(),
            "loss/regression": mse.detach(),
            "loss/bt": bt.detach(),
            "loss/centering": centre.detach(),
            "rewards": rewards_N.detach().sum(),
            "rewards_squared": rewards_N.detach().square().sum(),
            "margins": margin_B.sum(),
            "right": (margin_B > 0).sum(),  # a tie is wrong, as in RewardBench
            "tokens/useful": packed.useful_tokens,
            "tokens/computed": packed.computed_tokens,
        }
        return loss, figures

    def _counts(self, items: Sequence[Item]) -> dict[str, float]:
        """The denominators of the loss: counts over the whole update and all processes."""
        local = [
            float(sum(value is not None for item in items for row in item.ratings for value in row)),
            float(sum(item.strength != 0 for item in items)),
            float(sum(len(item.ratings) for item in items)),
        ]
        summed = self.accelerator.reduce(torch.tensor(local, device=self.args.device), reduction="sum")
        return dict(zip(("ratings", "pairs", "responses"), summed.tolist(), strict=True))

    def _summary(self, rows: Sequence[RowFigures], counts: Mapping[str, float]) -> dict[str, float | str]:
        """The figures of the whole update, over all processes."""
        local = sum_rows(rows)
        names = sorted(local)
        values = torch.tensor([local[n] for n in names], dtype=torch.float64, device=self.args.device)
        total = dict(zip(names, self.accelerator.reduce(values, reduction="sum").tolist(), strict=True))
        return {"stage": self.stage.name, **self._figures(total, counts)}

    def _figures(self, total: Mapping[str, float], counts: Mapping[str, float]) -> dict[str, float]:
        """The figures of metrics.jsonl out of the sums over an update."""
        return update_figures(total, counts, with_centering=self.stage.centering_weight > 0)

    @torch.no_grad()
    @phase("validation")
    def evaluate(self, *_: object, **__: object) -> dict[str, float]:
        """Loss, accuracy and squared error on the held-out items."""
        self.model.eval()
        local_items = processes.shard(self.validation)
        counts = self._counts(local_items)
        rows: list[RowFigures] = []
        for batch, counted in lockstep(self._packed(local_items or self.validation[:1]), self.model):
            with self.compute_loss_context_manager():
                row = self._row_loss(self.model, batch, counts)[1]
            # With fewer items than processes some processes have none; they report zeros under the same
            # names.
            rows.append(row if counted and local_items else dict.fromkeys(row, 0.0))
        self.model.train()
        summary = self._summary(rows, counts)
        figures = {"validation/loss": float(summary["loss/total"])}
        for name, source in {"mse": "loss/regression", "accuracy": "reward/accuracy"}.items():
            if source in summary:
                figures[f"validation/{name}"] = float(summary[source])
        self.record(self.step_offset + self.state.global_step, figures)
        metrics = {"eval_loss": figures["validation/loss"]}
        # Without this the trainer evaluates once more at the end of the stage.
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: object) -> bool:
        is_best = bool(super()._determine_best_metric(metrics, trial))
        if is_best:
            trained = self.accelerator.unwrap_model(self.model)
            save_trainable(trained, best_file(Path(self.args.output_dir), self.stage.name))
        return is_best

    def finish_stage(self) -> None:
        """Load the weights with the lowest validation loss; without validation, save the last ones."""
        best = best_file(Path(self.args.output_dir), self.stage.name)
        trained = self.accelerator.unwrap_model(self.model)
        if self.validation and best.exists():
            load_trainable(trained, best)
        else:
            save_trainable(trained, best)


def trainer_arguments(*, evaluate_every: int, has_validation: bool, **settings: Any) -> TRLRewardConfig:
    """TRL's configuration of a stage; `settings` are those of `trainer_settings`."""
    arguments = TRLRewardConfig(
        **trainer_settings(**settings),
        eval_strategy="steps" if has_validation else "no",
        eval_steps=evaluate_every,
        metric_for_best_model="eval_loss" if has_validation else None,
        greater_is_better=False,
        max_length=None,
    )
    return single_device(arguments)
