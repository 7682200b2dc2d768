"""TRL's SFTTrainer on justifications: its loss and loop; batches in an order made beforehand, checkpoints and
log of this project."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from reward.justifier.data import Example, columns
from reward.trainer import Record
from rlhf.distributed import processes
from rlhf.distributed.trainer_mixin import DistributedTrainerMixin, single_device, trainer_settings
from rlhf.models.loading import PeftModel
from rlhf.runs.checkpoints import SafeCheckpoints

STAGE = "justifier"


class JustifierTrainer(DistributedTrainerMixin, SafeCheckpoints, SFTTrainer):
    """Cross-entropy on the target's tokens, averaged over all target tokens of an update."""

    def __init__(
        self,
        model: PeftModel,
        arguments: SFTConfig,
        tokenizer: Any,
        *,
        examples: Sequence[Example],
        order: Sequence[int],
        record: Record,
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
        self.remove_callback(PrinterCallback)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Pass an update's figures on; the closing summary of transformers is left out."""
        if "loss" in logs:
            figures: dict[str, float | str] = {
                "stage": STAGE,
                "loss/total": logs["loss"],
                "optimizer/lr": logs["learning_rate"],
                "optimizer/grad_norm": logs["grad_norm"],
            }
            self.record(self.state.global_step, figures)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:
        return SequentialSampler(self.train_dataset)


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
