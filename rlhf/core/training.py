"""What both trainers tell transformers: one batch of the trainer is one update, and nothing is written but by us."""

from __future__ import annotations

import random
from typing import Any

import torch
from accelerate import PartialState


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
        batch_size: of one update, over all processes.
        bfloat16: compute in bfloat16; adapters and heads stay in float32.
    """
    return {
        "output_dir": folder,
        "max_steps": steps,
        "per_device_train_batch_size": max(1, batch_size // PartialState().num_processes),
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
    }


def draw_order(items: int, draws: int, seed: int) -> list[int]:
    """Which item each draw takes: one shuffled pass after another."""
    generator = random.Random(seed)
    order: list[int] = []
    while len(order) < draws:
        order += generator.sample(range(items), items)
    return order[:draws]
