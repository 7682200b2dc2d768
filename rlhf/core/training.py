"""What both trainers tell transformers: one batch of the trainer is one update, and nothing is written but by us."""

from __future__ import annotations

import random
from contextlib import AbstractContextManager
from typing import Any

import torch

from rlhf.core import processes
from rlhf.core.models import autocast
from rlhf.core.sharding import asked_for, is_sharded, know_on_cpus, settle


class AcrossProcesses:
    """What both trainers need of transformers' Trainer where there are several processes; mixed in before its class."""

    model: Any
    accelerator: Any
    is_fsdp_enabled: bool

    def create_accelerator_and_postprocess(self) -> None:
        """Let accelerate know of sharded weights on CPUs too."""
        super().create_accelerator_and_postprocess()  # type: ignore[misc]
        know_on_cpus(self.accelerator)
        self.is_fsdp_enabled = asked_for()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' loop; of a model that is sharded already the optimizer takes the shards, and no layer is sharded again."""
        if is_sharded(self.model):
            settle(self.model)
            self.accelerator.state.fsdp_plugin.auto_wrap_policy = None
        return super().train(*args, **kwargs)  # type: ignore[misc]

    def compute_loss_context_manager(self) -> AbstractContextManager[Any]:
        """Autocast, which accelerate puts around the forward pass of every model but a sharded one."""
        if is_sharded(self.model):
            return autocast(self.model.get_base_model())
        return super().compute_loss_context_manager()  # type: ignore[misc, no-any-return]


def trainer_settings(
    *,
    folder: str,
    steps: int,
    batch_size: int,
    bfloat16: bool,
    seed: int,
    save_every: int,
    gradient_checkpointing: bool,
    learning_rate: float,
    schedule: str,
    warmup_steps: int,
    weight_decay: float,
    betas: tuple[float, float],
    max_grad_norm: float,
) -> dict[str, Any]:
    """Keyword arguments of transformers' TrainingArguments.

    Args:
        folder: where checkpoints go.
        steps: updates.
        batch_size: of one update, over all processes; it can be dealt out evenly, see `processes.share`.
        bfloat16: compute in bfloat16; adapters and heads stay in float32.
    """
    return {
        "output_dir": folder,
        "max_steps": steps,
        "per_device_train_batch_size": batch_size // processes.count(),
        "learning_rate": learning_rate,
        "lr_scheduler_type": {"constant": "constant_with_warmup"}.get(schedule, schedule),
        "warmup_steps": warmup_steps,
        "weight_decay": weight_decay,
        "adam_beta1": betas[0],
        "adam_beta2": betas[1],
        "max_grad_norm": max_grad_norm,
        "bf16": bfloat16,
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": gradient_checkpointing,
        "save_strategy": "steps",
        "save_steps": save_every,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # a loss that is not finite stops the run
        "seed": seed,
        "report_to": "none",
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "disable_dropout": False,  # the adapter's is the config's to say
        "dataloader_pin_memory": False,
        "ddp_find_unused_parameters": False,  # every pass uses all that is trained
        "ddp_broadcast_buffers": False,  # the base's are constants, and processes make unequal numbers of passes
        "ddp_timeout": int(processes.LONGEST_WAIT.total_seconds()),
    }


def draw_order(items: int, draws: int, seed: int) -> list[int]:
    """Which item each draw takes: one shuffled pass after another."""
    generator = random.Random(seed)
    order: list[int] = []
    while len(order) < draws:
        order += generator.sample(range(items), items)
    return order[:draws]
