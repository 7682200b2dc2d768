"""Overrides of transformers' Trainer that all trainers of this project share.

One batch of the Trainer is one update, except in `train-justifier`, whose micro-batches transformers
accumulates.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from rlhf.core.errors import DivergenceError
from rlhf.distributed import processes, zero
from rlhf.distributed.sharding import enable_fsdp_on_cpu, fsdp_is_requested, is_fsdp, is_sharded, reshard
from rlhf.models.loading import autocast, base_of
from rlhf.runs.signals import StopRequest, stopped
from rlhf.training.schedule import learning_rate_factor

Arguments = TypeVar("Arguments", bound=TrainingArguments)


class TrainerMixin:
    """Overrides of transformers' Trainer: batches in a fixed order, figures, several processes.

    A mix-in, before the Trainer in the base classes.

    Attributes:
        figures: of the current update, without the optimizer's.
        record: receives the figures of each update.
        step_offset: updates before this trainer's first.
    """

    figures: Mapping[str, float | str]
    record: Callable[..., None]
    train_dataset: Any
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

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.remove_callback(PrinterCallback)  # type: ignore[attr-defined]

    # Rows are tokenized before the Trainer sees them, and in the order of `draw_order`, so that a resumed run
    # needs no sampler state.
    def _prepare_dataset(self, dataset: Any, *_: object, **__: object) -> Any:
        return dataset

    def _get_train_sampler(self, *_: object, **__: object) -> Any:
        return SequentialSampler(self.train_dataset)

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

    def accumulate(self, model: Any, *, last: bool) -> AbstractContextManager[Any]:
        """The context of one of an update's passes: only the last one averages gradients over processes.

        FSDP averages in every pass. Until it does, each process holds the gradients of all shards, and
        those of an adapter are few beside the weights that a pass gathers.
        """
        return nullcontext() if last or is_fsdp(model) else self.accelerator.no_sync(model)

    def _clip_grad_norm(self, model: Any) -> Any:
        """Clip the gradient.

        With DeepSpeed this also steps, and the optimizer step that follows is a no-op.
        """
        sharded = zero.is_sharded(model)
        norm = zero.step(model) if sharded else super()._clip_grad_norm(model)  # type: ignore[misc]
        self.require_finite(norm)
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Record an update's figures, and pass them to the callbacks' `on_log`.

        transformers' summary at the end of training is left out.
        """
        if "loss" not in logs:
            return
        optimizer = {"optimizer/lr": logs["learning_rate"], "optimizer/grad_norm": logs["grad_norm"]}
        figures = {**self.figures, **optimizer}
        self.record_update(self.step_offset + self.state.global_step, figures)
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, figures)

    def record_update(self, step: int, figures: Mapping[str, float | str]) -> None:
        """Pass an update's figures to `record`."""
        self.record(step, figures)

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
            fix="lower the optimizer's learning_rate, in a new run with another --output",
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
