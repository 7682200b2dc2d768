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
            fix=fix or "rlhf plan CONFIG --gpus NUMBER shows the memory of each phase and what to change",
        )


DESCRIPTIONS = {
    "loading": "loading the models",
    "rollouts": "sampling answers",
    "scoring": "scoring answers",
    "update": "updating the model",
    "validation": "scoring held-out items",
    "head start": "computing the head's first weights",
    "run": "running outside the phases of the plan",
}
"""Phase: what the run does in it."""
SIGNS = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""In the messages of CUDA, NCCL and cuBLAS, which allocate beside torch's allocator."""


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
        # torch's OutOfMemoryError is recognised by its name: torch is not imported for this.
        signs = any(sign in str(error) for sign in SIGNS)
        if isinstance(error, GpuMemoryError) or not (type(error).__name__ == "OutOfMemoryError" or signs):
            raise
        raise GpuMemoryError(name, str(error)) from error
