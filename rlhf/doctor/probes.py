"""Probes of libraries, each in a separate process: a broken build may crash the process that imports it.

`try_out(NAME)` runs `python -m rlhf.doctor.probes NAME`, whose last line is a JSON value.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from rlhf.doctor.facts import Trouble

SECONDS = 180
"""Time limit of a probe: importing vLLM takes half a minute on a busy machine."""


def try_out(name: str, *arguments: str, seconds: float = SECONDS) -> Any:
    """The result of a probe, or a `Trouble` with the last line of its error."""
    command = [sys.executable, "-m", "rlhf.doctor.probes", name, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return Trouble(f"no answer within {seconds:.0f} seconds")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return Trouble(lines[-1].strip() if lines else f"exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def torch() -> dict[str, Any]:
    """GPUs, CUDA and NCCL as torch sees them."""
    from torch import backends, cuda, version

    from rlhf.core.formats import slow_bfloat16

    count = cuda.device_count() if cuda.is_available() else 0
    pairs = [(gpu, peer) for gpu in range(count) for peer in range(count) if gpu != peer]
    return {
        "cuda": version.cuda,
        "nccl": ".".join(map(str, cuda.nccl.version())) if count else None,  # type: ignore[no-untyped-call]
        "gpus": [_gpu(number) for number in range(count)],
        "peers": all(cuda.can_device_access_peer(*pair) for pair in pairs) if pairs else None,
        "cudnn": backends.cudnn.version() if count else None,  # type: ignore[no-untyped-call]
        "slow_bfloat16": slow_bfloat16(),
    }


def _gpu(number: int) -> dict[str, Any]:
    from torch import cuda

    with cuda.device(number):
        free, memory = cuda.mem_get_info()
        # Hardware multiplies bfloat16 from compute capability 8.0 on; older GPUs emulate it.
        bfloat16 = cuda.get_device_capability()[0] >= 8
        return {"name": cuda.get_device_name(), "memory": memory, "free": free, "bfloat16": bfloat16}


def bitsandbytes() -> str:
    """Multiply by 4-bit weights, and return the error."""
    import torch
    from bitsandbytes.nn import Linear4bit

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layer = Linear4bit(64, 64, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    exact_OI, inputs_NI = layer.weight.data.clone().float(), torch.randn(8, 64)
    layer = layer.to(device)
    with torch.inference_mode():
        outputs_NO = layer(inputs_NI.to(device, torch.bfloat16)).float().cpu()
    expected_NO = inputs_NI @ exact_OI.T
    error = float((outputs_NO - expected_NO).norm() / expected_NO.norm())
    if not error < 0.2:  # 0.09 with a working build
        raise ArithmeticError(f"a product with NF4 weights has an error of {error:.0%}")
    return f"a product with NF4 weights on {device} has the usual error of {error:.0%}"


def vllm() -> str:
    """Import vLLM's engine; returns the platform it detects."""
    from vllm import LLM
    from vllm.platforms import current_platform

    return f"{LLM.__name__} imports, for {current_platform.device_type}"


def importing(name: str) -> str:
    """Import a library."""
    importlib.import_module(name)
    return "imports"


def hub(name: str, revision: str = "") -> dict[str, Any]:
    """Bytes of a model's weights on the Hub, or the class of the error."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    api = HfApi()
    try:
        api.auth_check(name)
        files = api.model_info(name, revision=revision or None, files_metadata=True).siblings or []
    except HfHubHTTPError as error:
        return {"error": type(error).__name__, "gated": isinstance(error, GatedRepoError)}
    return {"bytes": sum(file.size or 0 for file in files if file.rfilename.endswith(".safetensors"))}


PROBES: Mapping[str, Callable[..., Any]] = {
    "torch": torch,
    "bitsandbytes": bitsandbytes,
    "vllm": vllm,
    "import": importing,
    "hub": hub,
}
"""Name: probe."""


if __name__ == "__main__":
    print(json.dumps(PROBES[sys.argv[1]](*sys.argv[2:])))
