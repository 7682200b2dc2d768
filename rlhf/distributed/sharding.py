"""Sharded weights, each layer gathered only while it computes: FSDP2, or DeepSpeed ZeRO-3.

torch shards and gathers, as accelerate sets it up (`fsdp2_prepare_model`) and a file in `configs/launch/` configures it; for
DeepSpeed see `rlhf.distributed.zero`. All processes must make the same number of passes, since every pass gathers weights from
all of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rlhf.core.errors import ConfigError, ModelError
from rlhf.core.formats import compute_dtype
from rlhf.distributed import processes, zero

T = TypeVar("T")


def is_requested() -> bool:
    """Whether the launcher asks for sharded weights, by either engine."""
    return zero.is_requested() or fsdp_is_requested()


def fsdp_is_requested() -> bool:
    """Whether the launcher asks for FSDP2.

    Raises:
        ConfigError: it asks for FSDP 1.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise ConfigError(
            f"fsdp_version is {version}.",
            allowed="2: FSDP 1 cannot shard float32 adapters beside a bfloat16 or 4-bit base",
            fix="accelerate launch --config_file configs/launch/fsdp2.yaml",
        )
    return True


def configure_loading(quantization: str) -> None:
    """Have every process make 4-bit weights for itself; called before they are loaded.

    accelerate hands on no 4-bit weights, and where one process alone loads them the adapters that are drawn after it differ.
    """
    if quantization != "none":
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"


def shard(model: Any) -> None:
    """Shard a model's weights where the launcher asks for it; call it once all adapters are attached.

    Weights keep their formats: mixed precision is autocast's, and gradients of float32 adapters are summed in float32.
    """
    if not is_requested():
        return
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base._is_fsdp_managed_module = True  # noqa: SLF001 (keeps `generate` in step, see transformers)
    if zero.is_requested():
        zero.shard(model)
    else:
        _shard_by_fsdp(model, base)


def require_layers(base: Any) -> None:
    """Make sure that FSDP2 has layers to shard by: transformers names them in the model's class.

    Raises:
        ModelError: it names none, and every pass would gather the whole model at once.
    """
    if not base._no_split_modules:  # noqa: SLF001  # transformers' name for it everywhere
        raise ModelError(
            f"FSDP2 cannot shard {type(base).__name__}: transformers names none of its layers.",
            allowed="a model with `_no_split_modules`, as Llama, Qwen, Mistral and Gemma have them",
            fix="accelerate launch --config_file configs/launch/ddp.yaml, or another model.base",
        )


def _shard_by_fsdp(model: Any, base: Any) -> None:
    require_layers(base)
    from accelerate import Accelerator
    from accelerate.utils import fsdp2_prepare_model
    from torch.distributed.fsdp import register_fsdp_forward_method

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    enable_fsdp_on_cpu(accelerator)
    accelerator.state.fsdp_plugin.mixed_precision_policy = None
    fsdp2_prepare_model(accelerator, model)
    register_fsdp_forward_method(model, "generate")
    # torch takes the module of the first pass for the root, and what is made in inference mode can never be trained.
    bfloat16 = torch.autocast(
        accelerator.device.type, torch.bfloat16, enabled=compute_dtype(base) == torch.bfloat16
    )
    with torch.no_grad(), bfloat16:
        model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=accelerator.device))
    reshard(model)


def is_sharded(model: Any) -> bool:
    """Whether this model's weights are sharded."""
    return is_fsdp(model) or zero.is_sharded(model)


def is_fsdp(model: Any) -> bool:
    """Whether this model's weights are sharded by FSDP2."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def enable_fsdp_on_cpu(accelerator: Any) -> None:
    """Make accelerate use FSDP2 on CPUs too, where the tests run; by itself it does so on GPUs only."""
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    state = accelerator.state
    if fsdp_is_requested() and state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, FullyShardedDataParallelPlugin()


def inference_mode(model: nn.Module) -> AbstractContextManager[Any]:
    """torch's inference mode; with DeepSpeed, which gives parameters new data at each pass, they could never be trained again."""
    return torch.no_grad() if zero.is_sharded(model) else torch.inference_mode()


def through_root(model: Any, part: Callable[..., T]) -> Callable[..., T]:
    """A part of a model's forward pass, to be called by itself: of a sharded model it gathers what the whole pass would."""
    if not is_fsdp(model):
        return part
    from torch.distributed.fsdp import register_fsdp_forward_method

    model.part = lambda *args, **kwargs: part(
        *args, **kwargs
    )  # assigned itself, a module would become a part of the model
    register_fsdp_forward_method(model, "part")
    return model.part  # type: ignore[no-any-return]


def reshard(model: nn.Module) -> None:
    """Let every layer be a shard again: after a pass of FSDP2 some stay whole, and what is then changed in them is lost."""
    if not is_fsdp(model):
        return
    for module in model.modules():
        if is_fsdp(module):
            module.reshard()  # type: ignore[operator]


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor that may be sharded, gathered; all processes must call."""
    if hasattr(tensor, "ds_id"):
        return zero.full_tensor(tensor)
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def full_shape(tensor: Any) -> torch.Size:
    """The global shape of a tensor that may be sharded."""
    return tensor.ds_shape if hasattr(tensor, "ds_id") else tensor.shape  # type: ignore[no-any-return]


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Shard a tensor that every process has a copy of, in the way another one is sharded."""
    moved = tensor.to(like.device)
    if not hasattr(like, "full_tensor"):
        return moved
    from torch.distributed.tensor import distribute_tensor

    # It comes on the device of the mesh; what is offloaded stays where it lies.
    sharded = distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]
    return torch.empty_like(like, dtype=tensor.dtype, requires_grad=False).copy_(sharded)


def compute_device(model: nn.Module) -> torch.device:
    """The device a model computes on: this process's GPU where there is one, even if shards are offloaded to the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return next(model.parameters()).device


def finish_kernels() -> None:
    """Wait for the GPU, where there is one: a clock that is read before shows when kernels were queued, not when they ended."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def set_parameters(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Set parameters, by name, to the values of unsharded tensors."""
    reshard(model)
    parameters = dict(model.named_parameters())
    if zero.is_sharded(model):
        zero.set_parameters(parameters, values)
        return
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(shard_like(value, parameters[name]))


def lockstep(batches: Iterable[T], model: Any) -> Iterator[tuple[T, bool]]:
    """Batches, each with True; of a sharded model the last one repeats, with False, until all processes are done.

    There must be at least one. What is computed from a batch that comes with False is to change nothing.
    """
    own = list(batches)
    # Asked before the first pass: after it, another process may be in its next one, and what they exchange would not match.
    behind = missing_passes(len(own), model)
    for batch in own:
        yield batch, True
    for _ in range(behind):
        yield own[-1], False


def missing_passes(own: int, model: Any) -> int:
    """How many passes more another process has to make through a sharded model than this one."""
    return max(processes.all_gather(own)) - own if is_sharded(model) else 0
