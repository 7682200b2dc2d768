"""Load a base and shard it, as a run under FSDP2 does, and write this process's memory to a file.

accelerate launch ... tests/distributed/loading_worker.py BASE OUTPUT
"""

from __future__ import annotations

import ctypes
import gc
import json
import re
import sys
from pathlib import Path

from rlhf.distributed import processes, sharding
from rlhf.models.loading import load_causal, lora_config, with_adapter


def private_bytes() -> int:
    """Anonymous memory of this process that was written; pages of mapped files do not count."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    match = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


def main(base: str, output: str) -> None:
    processes.init()
    sharding.configure_loading("none")
    before = private_bytes()
    model = load_causal(base, revision=None, dtype="bfloat16", quantization="none")
    loaded = private_bytes() - before
    weights = sum(weight.untyped_storage().nbytes() for weight in dict.fromkeys(model.parameters()))
    wrapped = with_adapter(model, lora_config(rank=4, alpha=8, dropout=0.0, targets="all-linear"))
    sharding.shard(wrapped)
    local = sum(
        weight.to_local().untyped_storage().nbytes() for weight in dict.fromkeys(wrapped.parameters())
    )
    held = private_bytes() - before
    total = sum(float(sharding.full_tensor(weight).float().abs().sum()) for weight in wrapped.parameters())
    result = {"weights": weights, "loaded": loaded, "local": local, "sharded": held, "sum": total}
    Path(f"{output}-{processes.rank()}.json").write_text(json.dumps(result))
    processes.destroy()


if __name__ == "__main__":
    main(*sys.argv[1:])
