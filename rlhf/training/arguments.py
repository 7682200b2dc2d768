"""The TrainingArguments that all trainers of this project share."""

from __future__ import annotations

from typing import Any, TypeVar

from transformers import TrainingArguments

from rlhf.config.schema import OptimizerConfig, RunConfig
from rlhf.core.formats import effective_dtype
from rlhf.distributed import processes, zero

Arguments = TypeVar("Arguments", bound=TrainingArguments)


def single_device(arguments: Arguments) -> Arguments:
    """Restrict the arguments to one GPU per process, even if more are visible: TRL refuses DataParallel."""
    # As transformers' Trainer sets it for a model on several GPUs.
    arguments._n_gpu = min(arguments.n_gpu, 1)  # noqa: SLF001
    return arguments


def settings_of(config: RunConfig, optimizer: OptimizerConfig) -> dict[str, Any]:
    """The keyword arguments of `trainer_settings` that a config holds."""
    return {
        **optimizer.model_dump(),
        "dtype": config.model.dtype,
        "seed": config.seed,
        "save_every": config.save_every,
        "gradient_checkpointing": config.model.gradient_checkpointing,
    }


def trainer_settings(
    *,
    folder: str,
    steps: int,
    batch_size: int,
    dtype: str,
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
        folder: the folder of checkpoints.
        steps: the number of updates.
        batch_size: items per update over all processes; a multiple of the world size, see
            `processes.per_rank`.
        dtype: of the base, from the config; adapters and heads stay in float32.
    """
    zero.select_accelerator()  # before the Trainer, which imports DeepSpeed if it is installed
    cpu, backend = processes.device_and_backend()
    bfloat16 = effective_dtype(dtype) == "bfloat16"
    return {
        "output_dir": folder,
        "max_steps": steps,
        "per_device_train_batch_size": batch_size // processes.world_size(),
        "learning_rate": learning_rate,
        "lr_scheduler_type": {"constant": "constant_with_warmup"}.get(schedule, schedule),
        "warmup_steps": warmup_steps,
        "weight_decay": weight_decay,
        "adam_beta1": betas[0],
        "adam_beta2": betas[1],
        "max_grad_norm": max_grad_norm,
        "bf16": bfloat16 and not zero.is_requested(),  # DeepSpeed's engine does its own autocast
        "use_cpu": cpu,
        "ddp_backend": backend,
        "gradient_checkpointing": gradient_checkpointing,
        "save_strategy": "steps",
        "save_steps": save_every,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # a non-finite loss stops the run
        "seed": seed,
        "report_to": "none",
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "disable_dropout": False,  # the config sets the adapter's dropout
        "dataloader_pin_memory": False,
        "ddp_find_unused_parameters": False,  # every pass uses all trained parameters
        "ddp_broadcast_buffers": False,  # they are constants, and processes run unequal numbers of passes
        "ddp_timeout": int(processes.TIMEOUT.total_seconds()),
    }
