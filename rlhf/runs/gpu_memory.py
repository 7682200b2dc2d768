"""Which phase of a run the GPU's memory ran out in: torch's error names an allocation, and no phase."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rlhf.core.errors import RunError


class GpuMemoryError(RunError):
    """The GPU's memory ran out.

    Args:
        phase: as the plan names it (`loading`, `rollouts`, `scoring`, `update`, `validation`).
        cause: torch's own message.
    """

    def __init__(self, phase: str, cause: str, *, planned: str = "", fix: str = "") -> None:
        self.phase, self.cause = phase, cause
        found = f"The GPU's memory ran out while {WORDS[phase]} (phase: {phase}). {cause.splitlines()[0]}"
        super().__init__(
            f"{found}\n{planned}".rstrip(),
            fix=fix or "rlhf plan CONFIG --gpus CARDS, which says what each phase needs and what to change",
        )


WORDS = {
    "loading": "the models were loaded",
    "rollouts": "answers were sampled",
    "scoring": "answers were scored",
    "update": "the model was updated",
    "validation": "held-out items were scored",
}
"""Phase: what the run was doing."""


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Within the block, or the function it decorates, memory that runs out is an error of this phase; the innermost phase counts.

    Raises:
        GpuMemoryError: torch ran out of memory.
    """
    try:
        yield
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported for this
            raise
        raise GpuMemoryError(name, str(error)) from error
