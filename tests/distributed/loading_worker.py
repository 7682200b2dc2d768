"""Load a base and shard it, as a run under FSDP2 does, and write this process's memory to a file.

accelerate launch ... tests/distributed/loading_worker.py BASE OUTPUT QUANTIZATION
"""

from __future__ import annotations

import ctypes
import gc
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from rlhf.distributed import processes, sharding
from rlhf.models.loading import load_causal, lora_config, with_adapter


def private_bytes() -> int:
    """Anonymous memory of this process that was written; pages of mapped files do not count."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    match = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


def tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers on this process, and the scales of 4-bit weights."""
    yield from model.buffers()
    for parameter in model.parameters():
        yield parameter.to_local() if hasattr(parameter, "to_local") else parameter
    for module in model.modules():
        weight = getattr(module, "weight", None)
        state = getattr(weight, "quant_state", None) or getattr(module, "quant_state", None)
        if state is not None:
            yield from (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)


def held_bytes(model: nn.Module) -> int:
    """Bytes of the storages of a model, each counted once."""
    storages = [tensor.untyped_storage() for tensor in tensors(model)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def byte_sum(tensor: Tensor) -> int:
    """Sum of a tensor's bytes; as numbers, packed 4-bit weights are partly NaN."""
    return int(tensor.detach().contiguous().view(torch.uint8).long().sum())


def main(base: str, output: str, quantization: str) -> None:
    processes.init()
    sharding.configure_loading(quantization)
    before = private_bytes()
    model = load_causal(base, revision=None, dtype="bfloat16", quantization=quantization)
    loaded, weights = private_bytes() - before, held_bytes(model)
    itemsize = model.get_input_embeddings().weight.element_size()
    wrapped = with_adapter(model, lora_config(rank=4, alpha=8, dropout=0.0, targets="all-linear"))
    sharding.shard(wrapped)
    local, sharded = held_bytes(wrapped), private_bytes() - before
    total = sum(byte_sum(sharding.full_tensor(weight)) for weight in wrapped.parameters())
    result = {"weights": weights, "loaded": loaded, "local": local, "sharded": sharded, "sum": total}
    result["itemsize"] = itemsize
    Path(f"{output}-{processes.rank()}.json").write_text(json.dumps(result))
    processes.destroy()


if __name__ == "__main__":
    main(*sys.argv[1:])
