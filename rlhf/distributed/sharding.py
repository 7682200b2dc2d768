"""Sharded weights, each layer gathered only while it computes: FSDP2 or DeepSpeed ZeRO-3.

FSDP2 is set up by accelerate (`fsdp2_prepare_model`) and configured by a file in `configs/launch/`. DeepSpeed
is in `rlhf.distributed.zero`. All processes must run the same number of passes, since every pass gathers
weights from all of them.
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
    """Whether the launcher requests sharded weights, by FSDP2 or DeepSpeed."""
    return zero.is_requested() or fsdp_is_requested()


def refuse(command: str) -> None:
    """Refuse sharded weights for a command that does not support them.

    Raises:
        ConfigError: the launcher requests them.
    """
    if is_requested():
        raise ConfigError(
            f"{command} does not shard its model.",
            allowed="one process, or DDP",
            fix="accelerate launch --config_file configs/launch/ddp.yaml",
        )


def fsdp_is_requested() -> bool:
    """Whether the launcher requests FSDP2.

    Raises:
        ConfigError: it requests FSDP 1.
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
    """Make every process load 4-bit weights itself; call it before loading.

    accelerate does not broadcast 4-bit weights. If only one process loaded them, its random generator would
    advance alone, and adapters initialised later would differ between processes.
    """
    if quantization != "none":
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"


def shard(model: Any) -> None:
    """Shard a model's weights if the launcher requests it; call it once, after all adapters are attached.

    Weights keep their dtypes: autocast does mixed precision, and gradients of float32 adapters are reduced in
    float32.
    """
    if not is_requested():
        return
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base._is_fsdp_managed_module = True  # noqa: SLF001 (transformers then keeps `generate` in step)
    if zero.is_requested():
        zero.shard(model)
    else:
        _shard_by_fsdp(model, base)


def require_layers(base: Any) -> None:
    """Require the list of layer classes that FSDP2 wraps, `_no_split_modules` of the model's class.

    Raises:
        ModelError: the list is empty, and every pass would gather the whole model at once.
    """
    if not base._no_split_modules:  # noqa: SLF001  # transformers' name for it everywhere
        raise ModelError(
            f"FSDP2 cannot shard {type(base).__name__}: its class has no `_no_split_modules`.",
            allowed="a model with `_no_split_modules`, such as Llama, Qwen, Mistral and Gemma",
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
    # The module of the first pass becomes FSDP's root. In inference mode its tensors could never be trained.
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
    """Make accelerate use FSDP2 on CPUs too, for tests; by default it does so on GPUs only."""
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    state = accelerator.state
    if fsdp_is_requested() and state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, FullyShardedDataParallelPlugin()


def inference_mode(model: nn.Module) -> AbstractContextManager[Any]:
    """torch.inference_mode, or torch.no_grad with DeepSpeed.

    DeepSpeed gives parameters new data at each pass; created in inference mode, it could never be trained.
    """
    return torch.no_grad() if zero.is_sharded(model) else torch.inference_mode()


def through_root(model: Any, function: Callable[..., T]) -> Callable[..., T]:
    """Wrap a part of a model's forward pass so that FSDP2 gathers weights for it, as for the whole pass."""
    if not is_fsdp(model):
        return function
    from torch.distributed.fsdp import register_fsdp_forward_method

    # A lambda: assigning a module as an attribute would register it as a submodule.
    model.partial_forward = lambda *args, **kwargs: function(*args, **kwargs)
    register_fsdp_forward_method(model, "partial_forward")
    return model.partial_forward  # type: ignore[no-any-return]


def reshard(model: nn.Module) -> None:
    """Reshard every layer of FSDP2: layers that stay gathered after a pass lose changes made to them."""
    if not is_fsdp(model):
        return
    for module in model.modules():
        if is_fsdp(module):
            module.reshard()  # type: ignore[operator]


def full_tensor(tensor: Tensor) -> Tensor:
    """The unsharded tensor; a collective call if the tensor is sharded."""
    if hasattr(tensor, "ds_id"):
        return zero.full_tensor(tensor)
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def full_shape(tensor: Any) -> torch.Size:
    """The global shape of a tensor that may be sharded."""
    return tensor.ds_shape if hasattr(tensor, "ds_id") else tensor.shape  # type: ignore[no-any-return]


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Shard a tensor, of which every process has a copy, like another tensor."""
    moved = tensor.to(like.device)
    if not hasattr(like, "full_tensor"):
        return moved
    from torch.distributed.tensor import distribute_tensor

    # The result is on the mesh's device; copy it to the device of `like`, which may be offloaded.
    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    sharded = distribute_tensor(moved, mesh, placements, src_data_rank=None)
    return torch.empty_like(like, dtype=tensor.dtype, requires_grad=False).copy_(sharded)


def compute_device(model: nn.Module) -> torch.device:
    """The device a model computes on.

    This process's GPU if there is one, even if shards are offloaded to the CPU.
    """
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return next(model.parameters()).device


def finish_kernels() -> None:
    """Synchronise with the GPU, if there is one, so that a timer measures kernels and not their launch."""
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
    """Yield each (batch, True), then for a sharded model (last batch, False) as often as other processes
    need.

    All processes so run equally many passes.

    There must be at least one batch. Results of a batch that comes with False must be discarded.
    """
    local = list(batches)
    # Before the first pass: later, this collective could be matched with one of another process's pass.
    extra = missing_passes(len(local), model)
    for batch in local:
        yield batch, True
    for _ in range(extra):
        yield local[-1], False


def missing_passes(passes: int, model: Any) -> int:
    """The passes this process lacks to the largest number of any process; 0 if the model is not sharded."""
    return max(processes.all_gather(passes)) - passes if is_sharded(model) else 0
