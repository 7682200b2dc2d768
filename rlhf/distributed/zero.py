"""DeepSpeed ZeRO-3, the only module that imports it: sharded weights, each module gathered only while it computes.

DeepSpeed shards, gathers, reduces gradients and steps; accelerate creates its engine, as a file in `configs/launch/` configures it.
This module adds one engine for all passes, an explicit optimizer step, and unsharded weights and moments by name for checkpoints.
Other modules call `rlhf.distributed.sharding`.
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
    # Weights keep their formats: mixed precision is autocast's, adapters and their gradients stay in float32.
    "bf16": {"enabled": False},
    "fp16": {"enabled": False},
    "zero_allow_untested_optimizer": True,  # torch's AdamW
    "zero_force_ds_cpu_optimizer": False,
    "zero_optimization": {
        "stage": 3,
        # Which modules a pass uses changes with the role: what is fetched ahead, or kept for later, may not be used.
        "stage3_prefetch_bucket_size": 0,
        "stage3_max_reuse_distance": 0,
        # DeepSpeed gathers what it keeps whole in one format, and a bfloat16 base has float32 adapters.
        "stage3_param_persistence_threshold": 0,
        "reduce_bucket_size": 20_000_000,  # adapters are small, and the bucket is allocated: 80 MB
    },
}
"""DeepSpeed's config; accelerate fills in what is `auto`."""

CONFIG = "ACCELERATE_DEEPSPEED_CONFIG_FILE"
ENGINE = "zero_engine"


def is_requested() -> bool:
    """Whether the launcher asks for DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def prepare() -> None:
    """Get DeepSpeed ready, before the processes are connected.

    Raises:
        ConfigError: it is not installed, or the launch file sets options that are not supported.
    """
    file = os.environ.get(CONFIG, "")
    if not file.startswith("{"):  # ours, of a command before this one
        _check_launch(file)
        os.environ[CONFIG] = json.dumps(SETTINGS)
        os.environ["ACCELERATE_CONFIG_DS_FIELDS"] = ""  # what the launch file says beside, which was checked
    os.environ["ACCELERATE_DEEPSPEED_ZERO3_INIT"] = "false"  # every process loads the whole base, see `shard`
    select_accelerator()
    import deepspeed

    deepspeed.utils.logger.setLevel("ERROR")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = (
        False  # or a CPU backend is compiled at the start
    )


def select_accelerator() -> None:
    """Set DeepSpeed's accelerator: accelerate imports DeepSpeed in every run, and it would warn that there is no GPU."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def _check_launch(file: str) -> None:
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(
            "The launcher asks for DeepSpeed, which is not installed.",
            allowed="DeepSpeed where it is installed, DDP, and FSDP2, which shards what ZeRO-3 shards",
            fix="pip install -e '.[zero3]', or: accelerate launch --config_file configs/launch/fsdp2.yaml",
        )
    found = {
        "zero_stage": (os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"), "3"),
        "offload_optimizer_device": (
            os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none"),
            "none",
        ),
        "offload_param_device": (os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none"), "none"),
        "deepspeed_config_file": (file or "none", "none"),
    }
    for key, (value, allowed) in found.items():
        if value != allowed:
            raise ConfigError(
                f"The launch file's {key} is {value}.",
                allowed=f"{allowed}: the run's own config says the rest, and FSDP2 can offload",
                fix="accelerate launch --config_file configs/launch/zero3.yaml",
            )


def shard(model: Any) -> None:
    """Shard a model's weights, module by module; every process has the whole model before."""
    import deepspeed

    sizes = {"train_micro_batch_size_per_gpu": 1, "train_batch_size": processes.world_size()}
    config = {**SETTINGS, **sizes, "gradient_clipping": 0.0}
    deepspeed.zero.Init(module=model, config_dict_or_path=config)  # first, or the engine moves all to one GPU
    engine, *_ = deepspeed.initialize(model=model, config=config)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(engine.device)
    attach_engine(model, engine)


def is_sharded(model: nn.Module) -> bool:
    """Whether this model's weights are sharded by DeepSpeed."""
    return is_requested() and any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def attach_engine(model: nn.Module, engine: Any) -> None:
    """Remember the engine whose hooks are on a model."""
    model.__dict__[ENGINE] = engine  # set as an attribute it would become a part of the model


def detach_engine(model: nn.Module) -> None:
    """Remove the engine's hooks from a model, which stays sharded, for another engine's."""
    model.__dict__.pop(ENGINE).destroy()
    for module in model.modules():  # DeepSpeed's later hooks would call the engine of the first ones
        for name in ("pre_bwd_fn", "post_bwd_fn", "applied_pre_backward_ref_cnt"):
            module.__dict__.pop(name, None)


def disable_zero_init() -> None:
    """Keep transformers from loading the next model by DeepSpeed's `zero.Init`, which knows no packed heads and adapters."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


def enable_autocast(accelerator: Any) -> None:
    """Enable the engine's own autocast in a bfloat16 run: it disables the one around it. Reductions stay in float32."""
    settings = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    accelerator.state.deepspeed_plugin.deepspeed_config["torch_autocast"] = settings


def full_tensor(tensor: Any) -> Tensor:
    """A sharded parameter, gathered; within a pass that has gathered it already, that tensor."""
    import deepspeed

    if tensor.ds_status.name == "AVAILABLE":
        gathered: Tensor = tensor.data
    else:
        with deepspeed.zero.GatheredParameters([tensor]):
            gathered = tensor.data  # the parameter lets go of it afterwards
    return gathered


def set_parameters(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Give parameters, by name, the values of whole tensors."""
    import deepspeed

    for name, value in values.items():
        with deepspeed.zero.GatheredParameters([parameters[name]], modifier_rank=0), torch.no_grad():
            parameters[name].copy_(value)


def step(engine: Any) -> Tensor:
    """Clip the gradients that were summed since the last step, and step; returns their norm before.

    Raises:
        DivergenceError: a gradient is not a finite number.
    """
    engine.set_gradient_accumulation_boundary(True)
    engine.step()
    engine.set_gradient_accumulation_boundary(False)
    if engine.optimizer.overflow:
        raise DivergenceError("A gradient is not a finite number.", fix="lower optimizer.learning_rate")
    return torch.as_tensor(engine.get_global_grad_norm())


def step_by_group(
    engine: Any, groups: Sequence[Sequence[Any]], most: float, still: Sequence[Any]
) -> list[Tensor]:
    """Clip each group of parameters by its own norm, and step; returns the norms. Parameters in `still` keep values and moments."""
    from deepspeed.utils import safe_get_local_grad, safe_set_local_grad

    for parameter in still:
        safe_set_local_grad(parameter, torch.zeros_like(safe_get_local_grad(parameter)))
    norms = []
    for group in groups:
        gradients = [safe_get_local_grad(parameter) for parameter in group]
        square = torch.stack([one.square().sum() for one in gradients]).sum()
        torch.distributed.all_reduce(square)
        norms.append(square.sqrt())
        for parameter, one in zip(group, gradients, strict=True):
            safe_set_local_grad(parameter, one * (most / (norms[-1] + 1e-6)).clamp(max=1.0))
    engine.optimizer.clip_grad = 0.0
    with _held(engine.optimizer, {id(parameter) for parameter in still}):
        step(engine)
    for group in groups:  # the first pass after a step replaces gradients, of those it trains alone
        for parameter in group:
            safe_set_local_grad(parameter, torch.zeros_like(safe_get_local_grad(parameter)))
    return norms


@contextlib.contextmanager
def _held(dealt: Any, still: set[int]) -> Iterator[None]:
    """Within the block a step changes none of these parameters, whose gradients are zero; afterwards it is as if they had made none."""
    held = [place for place, own in enumerate(dealt.fp16_groups) if id(own[0]) in still]
    groups = [dealt.param_groups[dealt.sub_group_to_group_id[place]] for place in held]
    rates = [group["lr"] for group in groups]
    for group in groups:
        group["lr"] = 0.0
    yield
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
    for place in held:
        dealt.optimizer.state.pop(dealt.fp32_partitioned_groups_flat[place])


def moments(optimizer: Any) -> dict[int, dict[str, Tensor]]:
    """AdamW's state by parameter (its id) and kind, unsharded; all processes must call."""
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
    """Load what `moments` returned, in any number of processes."""
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
    """This process's shard of a tensor: shards are equal, and the last is padded."""
    size = parameter.ds_tensor.numel()
    flat = value.flatten().to(parameter.ds_tensor.device)
    padded = nn.functional.pad(flat, (0, size * processes.world_size() - flat.numel()))
    return padded[processes.rank() * size :][:size]


def _states(optimizer: Any) -> Iterator[tuple[Sequence[Any], dict[str, Tensor]]]:
    """The parameters that DeepSpeed steps as one, and their state."""
    dealt = optimizer.optimizer  # accelerate's wrapper, around DeepSpeed's, around torch's
    for parameters, flat in zip(dealt.fp16_groups, dealt.fp32_partitioned_groups_flat, strict=True):
        yield parameters, dealt.optimizer.state[flat]
