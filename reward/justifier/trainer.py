"""TRL's SFTTrainer on justifications: its loop and loss, computed on packed rows; batches in an order made
beforehand, checkpoints and log of this project.

Shapes: M target tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from reward.justifier.data import IGNORED, Example, columns
from rlhf.distributed import processes
from rlhf.kernels.inputs import packed_inputs
from rlhf.kernels.packed_batch import PackedBatch
from rlhf.kernels.packing import Tree, pack
from rlhf.kernels.packing_check import one_per_row
from rlhf.models.loading import PeftModel, base_of
from rlhf.runs.checkpoints import SafeCheckpoints
from rlhf.runs.gpu_memory import phase
from rlhf.tracking.recording import LogUpdate
from rlhf.training.arguments import single_device, trainer_settings
from rlhf.training.mixin import TrainerMixin

STAGE = "justifier"
WHOLE = 2**31
"""A token budget that keeps a micro-batch in one packed batch."""


class JustifierTrainer(TrainerMixin, SafeCheckpoints, SFTTrainer):
    """Cross-entropy on the target's tokens, averaged over all target tokens of an update.

    Replaces SFTTrainer's `compute_loss`: on a CPU, TRL applies the output embedding to padding and to the
    request as well.

    Args:
        model: a causal model with packed log-probabilities enabled, wrapped by PEFT.
    """

    def __init__(
        self,
        model: PeftModel,
        arguments: SFTConfig,
        tokenizer: Any,
        *,
        examples: Sequence[Example],
        order: Sequence[int],
        record: LogUpdate,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.record, self.stage_name, self.step_offset = record, STAGE, 0
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_dict(columns(examples, order)),
            processing_class=tokenizer,
            callbacks=list(callbacks),
        )
        collate: Any = self.data_collator
        self.data_collator: Any = PackingCollator(
            collate, self.processing_class.pad_token_id, one_per_row(base_of(model))
        )

    @phase("update")
    def training_step(self, *arguments: Any, **named: Any) -> Tensor:
        """A micro-batch forward and backward, as transformers does it."""
        return super().training_step(*arguments, **named)  # type: ignore[no-any-return]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """-sum_m log p(target_m) / target tokens of the update, of a micro-batch as one packed batch."""
        if return_outputs:
            raise NotImplementedError("the packed loss has no outputs")
        packed: PackedBatch = inputs["packed"].to(self.args.device)
        following = packed.next_tokens
        logps_M, _ = model(
            **packed_inputs(packed),
            predict=(following.rows_M, following.columns_M, following.ids_M),
            entropy=False,
        )
        # `num_items_in_batch` counts the targets of all processes, over which gradients are averaged.
        scale = 1 if num_items_in_batch is None else self.accelerator.num_processes
        return -logps_M.sum() * scale / (len(logps_M) if num_items_in_batch is None else num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Record an update's figures; its loss is transformers' own."""
        self.figures = {"stage": STAGE, "loss/total": logs.get("loss", math.nan)}
        super().log(logs, start_time)


@dataclass(frozen=True)
class PackingCollator:
    """Adds the packed batch to a micro-batch while it is on the CPU: later its ids would be read back."""

    collate: Callable[[list[dict[str, Any]]], dict[str, Any]]
    pad_id: int
    alone: bool

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """The tensors of `collate`, padded on the right, and `packed`."""
        inputs = self.collate(examples)
        return {**inputs, "packed": packed_examples(inputs, pad_id=self.pad_id, alone=self.alone)}


def packed_examples(inputs: Mapping[str, Tensor], *, pad_id: int, alone: bool) -> PackedBatch:
    """A padded micro-batch as one packed batch whose `next_tokens` are the targets.

    Args:
        inputs: `input_ids`, `attention_mask` and `labels`, padded on the right.
        alone: each example gets a row of its own.
    """
    trees = []
    for ids, labels, mask in zip(
        *(inputs[name].tolist() for name in ("input_ids", "labels", "attention_mask")), strict=True
    ):
        first = next(place for place, label in enumerate(labels) if label != IGNORED)
        # The last token of the request predicts the first one of the target.
        trees.append(Tree(tuple(ids[: first - 1]), (tuple(ids[first - 1 : sum(mask)]),)))
    (packed,) = pack(trees, WHOLE, pad_id=pad_id, one_per_row=alone)
    return packed


def trainer_arguments(*, micro_batch_size: int, batch_size: int, **settings: Any) -> SFTConfig:
    """The run's settings as TRL's; `settings` are those of `trainer_settings`."""
    local = batch_size // processes.world_size()
    arguments = {
        **trainer_settings(batch_size=batch_size, **settings),
        "per_device_train_batch_size": min(micro_batch_size, local),
        "gradient_accumulation_steps": max(1, local // micro_batch_size),
    }
    del arguments["disable_dropout"]  # SFTTrainer leaves dropout to the model
    return single_device(
        SFTConfig(**arguments, max_length=None, packing=False, dataset_kwargs={"skip_prepare_dataset": True})
    )
