"""TrainingArguments and Trainer overrides that both trainers share.

One batch of the Trainer is one update.
"""

from __future__ import annotations

import functools
import math
import os
import random
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainingArguments

from rlhf.config.schema import OptimizerConfig, RunConfig
from rlhf.core.errors import DivergenceError
from rlhf.core.formats import effective_dtype
from rlhf.distributed import processes, zero
from rlhf.distributed.schedule import learning_rate_factor
from rlhf.distributed.sharding import enable_fsdp_on_cpu, fsdp_is_requested, is_fsdp, is_sharded, reshard
from rlhf.models.loading import autocast, base_of
from rlhf.runs.signals import StopRequest, stopped

Arguments = TypeVar("Arguments", bound=TrainingArguments)


class DistributedTrainerMixin:
    """Overrides of transformers' Trainer for several processes.

    A mix-in, before the Trainer in the base classes.
    """

    model: Any
    model_wrapped: Any
    accelerator: Any
    args: Any
    state: Any
    step_offset: int
    control: Any
    callback_handler: Any
    is_fsdp_enabled: bool
    is_deepspeed_enabled: bool
    optimizer: Any

    def create_accelerator_and_postprocess(self) -> None:
        """Create the accelerator, with FSDP2 on CPUs too."""
        super().create_accelerator_and_postprocess()  # type: ignore[misc]
        enable_fsdp_on_cpu(self.accelerator)
        self.is_fsdp_enabled = fsdp_is_requested()
        if zero.is_requested():
            zero.disable_zero_init()

    def floating_point_ops(self, inputs: object) -> int:
        """Return 0: transformers' estimate ignores packing and adapters."""
        return 0

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Run transformers' training loop; a signal stops it after an update and its checkpoint.

        Raises:
            StoppedError: the process received SIGTERM or SIGINT.
        """
        with StopRequest() as request:
            callback = _StopCallback(request)
            self.add_callback(callback)  # type: ignore[attr-defined]
            result = self._train(*args, **kwargs)
            self.remove_callback(callback)  # type: ignore[attr-defined]
            if number := callback.signal_on_any_rank():
                raise stopped(number, self.step_offset + self.state.global_step)
        return result

    def _train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; a model that is already sharded is not wrapped again, and the optimizer gets its shards."""
        if is_fsdp(self.model):
            reshard(self.model)
            self.accelerator.state.fsdp_plugin.auto_wrap_policy = None
        if not zero.is_sharded(self.model):
            return super().train(*args, **kwargs)  # type: ignore[misc]
        self.is_deepspeed_enabled = False  # or transformers looks for DeepSpeed's own checkpoints
        zero.detach_engine(self.model)
        if self.model.get_base_model().dtype == torch.bfloat16:
            zero.enable_autocast(self.accelerator)
        done = super().train(*args, **kwargs)  # type: ignore[misc]
        zero.attach_engine(self.model, self.model_wrapped)
        return done

    def create_optimizer(self, model: Any = None) -> Any:
        """The Trainer's optimizer without empty parameter groups.

        DeepSpeed drops empty groups, and a checkpoint must load with every strategy.
        """
        optimizer = super().create_optimizer(model)  # type: ignore[misc]
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        return optimizer

    def backward(self, loss: Tensor) -> None:
        """Backward pass.

        With DeepSpeed the engine's own, since accelerate's would step the optimizer each time.
        """
        if zero.is_sharded(self.model):
            self.model_wrapped.backward(loss)
        else:
            self.accelerator.backward(loss)

    def _clip_grad_norm(self, model: Any) -> Any:
        """Clip the gradient.

        With DeepSpeed this also steps, and the optimizer step that follows is a no-op.
        """
        sharded = zero.is_sharded(model)
        norm = zero.step(model) if sharded else super()._clip_grad_norm(model)  # type: ignore[misc]
        self.require_finite(norm)
        return norm

    def notify(self, figures: Mapping[str, float | str]) -> None:
        """Pass an update's figures to the callbacks' `on_log`, as transformers does with its own."""
        logs = dict(figures)
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    def require_finite(self, norm: Any) -> None:
        """Require a finite gradient norm: clipping would turn the gradient into zeros or NaN.

        Raises:
            DivergenceError: the norm is infinite or NaN.
        """
        if norm is not None and not math.isfinite(float(norm)):
            raise self.diverged(float(norm))

    def diverged(self, norm: float) -> DivergenceError:
        """The error for a gradient whose norm is not finite."""
        return DivergenceError(
            f"The gradient's norm is {norm} at update {self.state.global_step + 1}.",
            allowed="a finite number",
            fix="lower the optimizer's learning_rate; the weights of the last checkpoint are sound: --resume",
        )

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Create a schedule whose warm-up starts above 0, see `learning_rate_factor`."""
        factor = functools.partial(
            learning_rate_factor,
            schedule=str(getattr(self.args.lr_scheduler_type, "value", self.args.lr_scheduler_type)),
            warmup=self.args.get_warmup_steps(num_training_steps),
            total=num_training_steps,
        )
        self.lr_scheduler = LambdaLR(self.optimizer if optimizer is None else optimizer, factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def _send_telemetry(self) -> None:
        """Send TRL's telemetry to the Hub only if the user sets HF_HUB_DISABLE_TELEMETRY=0."""
        if os.environ.get("HF_HUB_DISABLE_TELEMETRY", "").lower() in ("0", "no", "false", "off"):
            super()._send_telemetry()  # type: ignore[misc]

    def compute_loss_context_manager(self) -> AbstractContextManager[Any]:
        """Autocast for a sharded model, which accelerate does not wrap in it."""
        if is_sharded(self.model):
            return autocast(base_of(self.model))
        return super().compute_loss_context_manager()  # type: ignore[misc, no-any-return]

    def clip_by_group(self, model: Any, groups: Sequence[Sequence[Any]], skipped: Sequence[Any]) -> list[Any]:
        """Clip each group of parameters by its own norm; return the norms.

        Parameters in `skipped` are not stepped.
        """
        if zero.is_sharded(model):
            return zero.step_by_group(model, groups, self.args.max_grad_norm, skipped)
        for parameter in skipped:
            parameter.grad = None  # AdamW skips it
        norms = [self.accelerator.clip_grad_norm_(group, self.args.max_grad_norm) for group in groups]
        for norm in norms:
            self.require_finite(norm)
        return norms


class _StopCallback(TrainerCallback):
    """Stop training after an update, with a checkpoint, if any process received a signal."""

    def __init__(self, request: StopRequest) -> None:
        self.request = request

    def signal_on_any_rank(self) -> int:
        """The number of a signal that any process received, in all processes; 0 if none."""
        return max(processes.all_gather(self.request.signal))

    def on_step_end(self, args: object, state: object, control: Any, **_: object) -> None:
        if self.signal_on_any_rank():
            control.should_save = control.should_training_stop = True


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


def draw_order(items: int, draws: int, seed: int) -> list[int]:
    """The item of each draw: consecutive shuffled passes over all items."""
    generator = random.Random(seed)
    order: list[int] = []
    while len(order) < draws:
        order += generator.sample(range(items), items)
    return order[:draws]
