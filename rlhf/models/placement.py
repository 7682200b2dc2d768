"""Control the device of weights while a base is loaded, to limit GPU and CPU memory.

By default transformers loads a complete 4-bit base onto the current GPU, even if FSDP2 shards it afterwards.
For a bfloat16 base under FSDP2 every rank except the first fills a copy with zeros
(`_move_missing_keys_from_meta_to_device`, transformers issue 43749). Here a base to be sharded is loaded into
CPU memory: 4-bit weights are quantized on the GPU one at a time, and ranks that receive weights from the
first rank allocate memory without writing to it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, modeling_utils
from transformers.integrations.bitsandbytes import Bnb4bitQuantize

from rlhf.core.errors import RunError
from rlhf.distributed import sharding

HOST = {"": "cpu"}
"""transformers' device map for CPU memory."""
GPU_FILES = Path("/proc/driver/nvidia/gpus")
"""The driver's list of GPUs."""


def require_usable_gpus() -> None:
    """Refuse to run on the CPU of a machine whose GPUs torch, built for them, cannot use.

    Raises:
        RunError: the driver is too old for this build of torch, for example.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if hidden or torch.version.cuda is None or torch.cuda.is_available() or not any(GPU_FILES.glob("*")):
        return
    reason = "torch gives no reason"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
    raise RunError(
        f"This machine has NVIDIA GPUs, of which torch for CUDA {torch.version.cuda} can use none: {reason}",
        fix="install a newer driver, or a torch for an older CUDA (see `rlhf doctor`); to run on the CPU on "
        "purpose: export CUDA_VISIBLE_DEVICES=",
    )


@contextmanager
def loading(quantization: str, *, on_host: bool = False) -> Iterator[dict[str, Any]]:
    """Yield keyword arguments for `from_pretrained`, which must be called within the block.

    Args:
        quantization: of the base.
        on_host: keep the base in CPU memory, scales included. A base to be sharded is kept there too, but its
            scales are on the GPU, since FSDP does not shard them.
    """
    sharded = sharding.is_requested()
    with ExitStack() as stack:
        if sharded:
            stack.enter_context(_untouched_on_other_ranks())
        if quantization == "none" or not (sharded or on_host):
            yield {}
            return
        if torch.cuda.is_available():
            device = torch.device("cuda", torch.cuda.current_device())
            stack.enter_context(quantized_on(device, scales_on_host=on_host))
        yield {"device_map": HOST}


@contextmanager
def quantized_on(device: torch.device, *, scales_on_host: bool) -> Iterator[None]:
    """Quantize weights on `device`, one at a time, within the block, and keep them in CPU memory."""
    stock = Bnb4bitQuantize.convert

    def convert(self: Any, input_dict: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        moved = {
            name: (value[0] if isinstance(value, list) else value).to(device)
            for name, value in input_dict.items()
        }
        quantized: dict[str, Any] = stock(self, moved, **kwargs)
        for weight in quantized.values():
            weight.data = weight.data.to("cpu")
            if scales_on_host:
                weight.quant_state.to("cpu")
        return quantized

    Bnb4bitQuantize.convert = convert
    try:
        yield
    finally:
        Bnb4bitQuantize.convert = stock


@contextmanager
def _untouched_on_other_ranks() -> Iterator[None]:
    """Within the block, ranks that do not load weights allocate memory without writing to it."""
    stock = PreTrainedModel._move_missing_keys_from_meta_to_device  # noqa: SLF001

    def reserve(self: Any, missing_keys: Any, device_map: Any, device_mesh: Any, hf_quantizer: Any) -> None:
        waits = modeling_utils.is_fsdp_enabled() and not modeling_utils.is_local_dist_rank_0()
        if hf_quantizer is not None or not waits:
            stock(self, missing_keys, device_map, device_mesh, hf_quantizer)
            return
        tensors: list[tuple[str, Tensor]] = [*self.named_parameters(), *self.named_buffers()]
        for name, tensor in tensors:
            modeling_utils._load_parameter_into_model(  # noqa: SLF001
                self, name, torch.empty_like(tensor, device="cpu")
            )

    PreTrainedModel._move_missing_keys_from_meta_to_device = reserve  # noqa: SLF001
    try:
        yield
    finally:
        PreTrainedModel._move_missing_keys_from_meta_to_device = stock  # noqa: SLF001
