"""DeepSpeed ZeRO-3: sharded weights, each module gathered only while it computes.

DeepSpeed shards, gathers, reduces gradients and steps. accelerate creates its engine, configured by a file in
`configs/launch/`. This module adds one engine for all passes, an explicit optimizer step, and unsharded
weights and moments by name for checkpoints. It is the only module that imports DeepSpeed; others call
`rlhf.distributed.sharding`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.core.errors import ConfigError, DivergenceError
from rlhf.distributed import processes

SETTINGS: Mapping[str, Any] = {
    "train_micro_batch_size_per_gpu": "auto",
    "train_batch_size": "auto",
    "gradient_accumulation_steps": 1,
    "gradient_clipping": "auto",
    # Weights keep their dtypes: autocast does mixed precision, adapters and their gradients stay in float32.
    "bf16": {"enabled": False},
    "fp16": {"enabled": False},
    "zero_allow_untested_optimizer": True,  # torch's AdamW
    "zero_force_ds_cpu_optimizer": False,
    "zero_optimization": {
        "stage": 3,
        # The modules of a pass change with the active adapter, so prefetched or retained parameters may be
        # unused.
        "stage3_prefetch_bucket_size": 0,
        "stage3_max_reuse_distance": 0,
        # DeepSpeed gathers persistent parameters in one dtype, but a bfloat16 base has float32 adapters.
        "stage3_param_persistence_threshold": 0,
        "reduce_bucket_size": 20_000_000,  # adapters are small, and the bucket is allocated: 80 MB
    },
}
"""DeepSpeed's config; accelerate replaces each `auto`."""

CONFIG = "ACCELERATE_DEEPSPEED_CONFIG_FILE"
ENGINE = "zero_engine"


def is_requested() -> bool:
    """Whether the launcher requests DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def prepare() -> None:
    """Configure DeepSpeed, before the process group is initialised.

    Raises:
        ConfigError: DeepSpeed is not installed, or the launch file sets unsupported options.
    """
    file = os.environ.get(CONFIG, "")
    if not file.startswith("{"):  # else set by an earlier command in this process
        _check_launch(file)
        os.environ[CONFIG] = json.dumps(SETTINGS)
        os.environ["ACCELERATE_CONFIG_DS_FIELDS"] = ""  # the launch file's other options, which were checked
    os.environ["ACCELERATE_DEEPSPEED_ZERO3_INIT"] = "false"  # every process loads the full base, see `shard`
    select_accelerator()
    import deepspeed

    deepspeed.utils.logger.setLevel("ERROR")
    # Otherwise DeepSpeed compiles a CPU backend at startup.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def select_accelerator() -> None:
    """Set DeepSpeed's accelerator to the CPU if there is no GPU.

    Otherwise it warns in every run that imports it.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def _check_launch(file: str) -> None:
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(
            "The launcher requests DeepSpeed, which is not installed.",
            allowed="DDP, FSDP2 (which shards what ZeRO-3 shards), or DeepSpeed once it is installed",
            fix="pip install -e '.[zero3]', or: accelerate launch --config_file configs/launch/fsdp2.yaml",
        )
    options = {
        "zero_stage": (os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"), "3"),
        "offload_optimizer_device": (
            os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none"),
            "none",
        ),
        "offload_param_device": (os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none"), "none"),
        "deepspeed_config_file": (file or "none", "none"),
    }
    for key, (value, allowed) in options.items():
        if value != allowed:
            raise ConfigError(
                f"The launch file's {key} is {value}.",
                allowed=f"{allowed}: the run's config sets everything else; FSDP2 can offload",
                fix="accelerate launch --config_file configs/launch/zero3.yaml",
            )


def shard(model: Any) -> None:
    """Shard a model's weights, module by module; every process must hold the full model."""
    import deepspeed

    sizes = {"train_micro_batch_size_per_gpu": 1, "train_batch_size": processes.world_size()}
    config = {**SETTINGS, **sizes, "gradient_clipping": 0.0}
    # First, or the engine moves the full model to one GPU.
    deepspeed.zero.Init(module=model, config_dict_or_path=config)
    engine, *_ = deepspeed.initialize(model=model, config=config)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(engine.device)
    attach_engine(model, engine)


def is_sharded(model: nn.Module) -> bool:
    """Whether this model's weights are sharded by DeepSpeed."""
    return is_requested() and any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def attach_engine(model: nn.Module, engine: Any) -> None:
    """Record the engine whose hooks are on a model."""
    model.__dict__[ENGINE] = engine  # setattr would register it as a submodule


def detach_engine(model: nn.Module) -> None:
    """Remove the engine's hooks, so that another engine can add its own; the model stays sharded."""
    model.__dict__.pop(ENGINE).destroy()
    for module in model.modules():  # or later hooks would call the first engine
        for name in ("pre_bwd_fn", "post_bwd_fn", "applied_pre_backward_ref_cnt"):
            module.__dict__.pop(name, None)


def disable_zero_init() -> None:
    """Stop transformers from loading the next model under `zero.Init`, which rejects our heads and
    adapters."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


def enable_autocast(accelerator: Any) -> None:
    """Enable the engine's autocast in a bfloat16 run, since it disables an outer one.

    Reductions stay in float32.
    """
    settings = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    accelerator.state.deepspeed_plugin.deepspeed_config["torch_autocast"] = settings


def full_tensor(tensor: Any) -> Tensor:
    """The unsharded value of a parameter; within a pass that has gathered it, that tensor."""
    import deepspeed

    if tensor.ds_status.name == "AVAILABLE":
        gathered: Tensor = tensor.data
    else:
        with deepspeed.zero.GatheredParameters([tensor]):
            gathered = tensor.data  # the parameter releases it afterwards
    return gathered


def set_parameters(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Set parameters, by name, to the values of unsharded tensors."""
    import deepspeed

    for name, value in values.items():
        with deepspeed.zero.GatheredParameters([parameters[name]], modifier_rank=0), torch.no_grad():
            parameters[name].copy_(value)


def step(engine: Any) -> Tensor:
    """Clip the accumulated gradients and step the optimizer; return the norm before clipping.

    Raises:
        DivergenceError: a gradient is not finite.
    """
    engine.set_gradient_accumulation_boundary(True)
    engine.step()
    engine.set_gradient_accumulation_boundary(False)
    if engine.optimizer.overflow:
        raise DivergenceError("A gradient is not finite.", fix="lower optimizer.learning_rate")
    return torch.as_tensor(engine.get_global_grad_norm())


def step_by_group(
    engine: Any, groups: Sequence[Sequence[Any]], max_norm: float, skipped: Sequence[Any]
) -> list[Tensor]:
    """Clip each group of parameters by its own norm, and step; return the norms.

    Parameters in `skipped` keep their values and moments.
    """
    from deepspeed.utils import safe_get_local_grad, safe_set_local_grad

    for parameter in skipped:
        safe_set_local_grad(parameter, torch.zeros_like(safe_get_local_grad(parameter)))
    norms = []
    for group in groups:
        gradients = [safe_get_local_grad(parameter) for parameter in group]
        square = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
        torch.distributed.all_reduce(square)
        norms.append(square.sqrt())
        factor = (max_norm / (norms[-1] + 1e-6)).clamp(max=1.0)
        for parameter, gradient in zip(group, gradients, strict=True):
            safe_set_local_grad(parameter, gradient * factor)
    engine.optimizer.clip_grad = 0.0
    with _excluded(engine.optimizer, {id(parameter) for parameter in skipped}):
        step(engine)
    # The first pass after a step replaces gradients, but only those of parameters it trains.
    for group in groups:
        for parameter in group:
            safe_set_local_grad(parameter, torch.zeros_like(safe_get_local_grad(parameter)))
    return norms


@contextlib.contextmanager
def _excluded(optimizer: Any, skipped: set[int]) -> Iterator[None]:
    """Exclude parameters (ids), whose gradients are zero, from steps within the block: no update, no
    state."""
    excluded = [i for i, parameters in enumerate(optimizer.fp16_groups) if id(parameters[0]) in skipped]
    groups = [optimizer.param_groups[optimizer.sub_group_to_group_id[i]] for i in excluded]
    rates = [group["lr"] for group in groups]
    for group in groups:
        group["lr"] = 0.0
    yield
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
    for i in excluded:
        optimizer.optimizer.state.pop(optimizer.fp32_partitioned_groups_flat[i])


def moments(optimizer: Any) -> dict[int, dict[str, Tensor]]:
    """AdamW's state by id of the parameter and by name, unsharded; a collective call."""
    from deepspeed.utils import safe_get_full_optimizer_state

    return {
        id(parameter): {
            kind: value.clone() if kind == "step" else safe_get_full_optimizer_state(parameter, kind)
            for kind, value in state.items()
        }
        for parameters, state in _states(optimizer)
        for parameter in parameters
    }


def load_moments(optimizer: Any, saved: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Load the result of `moments`, in any number of processes."""
    from deepspeed.utils import safe_set_local_optimizer_state

    flats = optimizer.optimizer.fp32_partitioned_groups_flat
    for (parameters, state), flat in zip(_states(optimizer), flats, strict=True):
        for kind, first in saved.get(id(parameters[0]), {}).items():
            state[kind] = first.to(flat.device) if kind == "step" else torch.zeros_like(flat)
        for parameter in parameters:
            for kind, value in saved.get(id(parameter), {}).items():
                if kind != "step":
                    safe_set_local_optimizer_state(parameter, local_shard(value, parameter), kind)


def local_shard(value: Tensor, parameter: Any) -> Tensor:
    """This rank's shard of a tensor: shards have equal sizes, and the last is padded."""
    size = parameter.ds_tensor.numel()
    flat = value.flatten().to(parameter.ds_tensor.device)
    padded = nn.functional.pad(flat, (0, size * processes.world_size() - flat.numel()))
    return padded[processes.rank() * size :][:size]


def _states(optimizer: Any) -> Iterator[tuple[Sequence[Any], dict[str, Tensor]]]:
    """Yield each sub-group of parameters that DeepSpeed steps together, with its state."""
    zero_optimizer = optimizer.optimizer  # accelerate's wrapper, around DeepSpeed's, around torch's
    flats = zero_optimizer.fp32_partitioned_groups_flat
    for parameters, flat in zip(zero_optimizer.fp16_groups, flats, strict=True):
        yield parameters, zero_optimizer.optimizer.state[flat]
