"""Libraries tried out, each in a process of its own: a broken build may end the process that imports it.

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
"""vLLM takes half a minute to import on a busy machine; what takes longer hangs."""


def try_out(name: str, *arguments: str, seconds: float = SECONDS) -> Any:
    """What a probe found, or a `Trouble` with the last line of its error."""
    command = [sys.executable, "-m", "rlhf.doctor.probes", name, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return Trouble(f"no answer within {seconds:.0f} seconds")
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        return Trouble(said[-1].strip() if said else f"ended with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def torch() -> dict[str, Any]:
    """Cards, CUDA and NCCL as torch sees them."""
    from torch import backends, cuda, version

    from rlhf.core.formats import emulates_bfloat16

    count = cuda.device_count() if cuda.is_available() else 0
    pairs = [(one, other) for one in range(count) for other in range(count) if one != other]
    return {
        "cuda": version.cuda,
        "nccl": ".".join(map(str, cuda.nccl.version())) if count else None,  # type: ignore[no-untyped-call]
        "gpus": [_card(number) for number in range(count)],
        "peers": all(cuda.can_device_access_peer(*pair) for pair in pairs) if pairs else None,
        "cudnn": backends.cudnn.version() if count else None,  # type: ignore[no-untyped-call]
        "emulates_bfloat16": emulates_bfloat16(),
    }


def _card(number: int) -> dict[str, Any]:
    from torch import cuda

    with cuda.device(number):
        free, memory = cuda.mem_get_info()
        # 8.0 is the first compute capability whose hardware multiplies bfloat16; older cards emulate it.
        bfloat16 = cuda.get_device_capability()[0] >= 8
        return {"name": cuda.get_device_name(), "memory": memory, "free": free, "bfloat16": bfloat16}


def bitsandbytes() -> str:
    """A matrix product with 4-bit weights, and how far it is from the exact one."""
    import torch
    from bitsandbytes.nn import Linear4bit

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layer = Linear4bit(64, 64, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    exact_OI, inputs_NI = layer.weight.data.clone().float(), torch.randn(8, 64)
    layer = layer.to(device)
    with torch.inference_mode():
        outputs_NO = layer(inputs_NI.to(device, torch.bfloat16)).float().cpu()
    wanted_NO = inputs_NI @ exact_OI.T
    error = float((outputs_NO - wanted_NO).norm() / wanted_NO.norm())
    if not error < 0.2:  # 0.09 where it works
        raise ArithmeticError(f"a product with NF4 weights is {error:.0%} off")
    return f"a product with NF4 weights on {device} is {error:.0%} off, as it should be"


def vllm() -> str:
    """The import of vLLM's engine, and the platform it chose."""
    from vllm import LLM
    from vllm.platforms import current_platform

    return f"{LLM.__name__} imports, for {current_platform.device_type}"


def importing(name: str) -> str:
    """The import of a library."""
    importlib.import_module(name)
    return "imports"


def hub(name: str, revision: str = "") -> dict[str, Any]:
    """Whether the Hub lets us have a model, and the bytes of its weights; the error in one line if not."""
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
"""Every probe by its name."""


if __name__ == "__main__":
    print(json.dumps(PROBES[sys.argv[1]](*sys.argv[2:])))
