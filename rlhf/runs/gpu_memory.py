"""Name the phase of a run in which GPU memory ran out; torch's error names only an allocation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rlhf.core.errors import RunError


class GpuMemoryError(RunError):
    """GPU memory ran out.

    Args:
        phase: a phase of the plan (`loading`, `rollouts`, `scoring`, `update`, `validation`).
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
}
"""Phase: what the run does in it."""


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
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported for this
            raise
        raise GpuMemoryError(name, str(error)) from error
