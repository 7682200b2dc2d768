"""Name the phase of a run in which GPU memory ran out; torch's error names only an allocation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rlhf.core.errors import RunError


class GpuMemoryError(RunError):
    """GPU memory ran out.

    Args:
        phase: a key of `DESCRIPTIONS`.
        cause: torch's message.
    """

    def __init__(self, phase: str, cause: str, *, planned: str = "", fix: str = "") -> None:
        self.phase, self.cause = phase, cause
        message = f"GPU memory ran out while {DESCRIPTIONS[phase]} (phase: {phase}). {cause.splitlines()[0]}"
        super().__init__(
            f"{message}\n{planned}".rstrip(),
            fix=fix or FIRST_CHANGES[phase],
        )


DESCRIPTIONS = {
    "loading": "loading the models",
    "rollouts": "sampling answers, or starting the engine that samples them",
    "scoring": "scoring answers",
    "update": "updating the model",
    "validation": "scoring held-out items",
    "head start": "computing the head's first weights",
    "run": "running outside the phases of the plan",
}
"""Phase: what the run does in it."""
ROWS = "a smaller tokens_per_batch (train-justifier: micro_batch_size)"
FIRST_CHANGES = {
    "loading": "model.quantization=nf4, or stop other programs on the GPU (nvidia-smi)",
    "rollouts": "fewer answers at once, or a smaller max_new_tokens",
    "scoring": ROWS,
    "update": f"model.gradient_checkpointing=true, then {ROWS}",
    "validation": ROWS,
    "head start": ROWS,
    "run": f"{ROWS}, or stop other programs on the GPU (nvidia-smi)",
}
"""Phase: the first thing to change where there is no plan: `rlhf plan` takes the configs of train-reward and
align-policy."""
SIGNS = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""In the messages of CUDA, NCCL and cuBLAS, which allocate beside torch's allocator."""


def memory_error(error: Exception, name: str = "run") -> GpuMemoryError | None:
    """The error as that of a phase, if the GPU's memory ran out; else None.

    torch's OutOfMemoryError is recognised by its name: torch is not imported for this.
    """
    if not isinstance(error, RuntimeError) or isinstance(error, GpuMemoryError):
        return None
    signs = any(sign in str(error) for sign in SIGNS)
    return GpuMemoryError(name, str(error)) if signs or type(error).__name__ == "OutOfMemoryError" else None


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Convert out-of-memory errors in the block, or the decorated function, to those of a phase.

    The innermost wins.

    Raises:
        GpuMemoryError: torch ran out of memory.
    """
    try:
        yield
    except RuntimeError as error:
        known = memory_error(error, name)
        if known is None:
            raise
        raise known from error
