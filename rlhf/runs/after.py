"""What follows training, step by step: a step that fails is reported at the end, and takes nothing else with it.

A run of many hours must not lose its evaluation, card or report to the check before it. Weights are written before the first
of these steps; each later step runs whatever became of the others, unless it needs their results.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Self, TypeVar

from rlhf.core.errors import RlhfError, RunError
from rlhf.distributed import processes
from rlhf.runs.disk import full_disk

T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """A step that failed, and why."""

    step: str
    reason: str


class AfterTraining:
    """The steps after training. A `with` block ends by raising what failed in it, as one error.

    In a run of several processes, a process whose collective step failed takes part in no further one: the others may wait in
    the failed one. It still does what it can do alone, then ends, and the launcher ends the others.

    Args:
        saved: what is complete and on disk before the first step, as a clause.
        fix: what to do about a failure.

    Attributes:
        failures: what failed so far, in order.
    """

    def __init__(
        self,
        saved: str = "Training is complete and its weights are saved",
        fix: str = "fix the cause, then type the command again with --resume: training is not repeated",
    ) -> None:
        self.failures: list[Failure] = []
        self._saved, self._fix = saved, fix
        self._alone = False

    def run(self, step: str, work: Callable[[], T]) -> T | None:
        """A step in which all processes take part: its result, or None where it failed."""
        if self._alone:
            self.failures.append(Failure(step, "not tried, after the failure above"))
            return None
        result = self._try(step, work)
        self._alone = bool(self.failures) and self.failures[-1].step == step and processes.world_size() > 1
        return result

    def on_main(self, step: str, work: Callable[[], T]) -> T | None:
        """A step of the main process alone, for which no other waits: its result, or None elsewhere and where it failed."""
        return self._try(step, work) if processes.is_main() else None

    def fail(self, step: str, reason: str) -> None:
        """Record a failure that a step found out and survived."""
        self.failures.append(Failure(step, reason))

    def as_dict(self) -> dict[str, list[dict[str, str]]]:
        """What failed so far, for a result file; empty where nothing did."""
        return {"failures": [asdict(failure) for failure in self.failures]} if self.failures else {}

    def _try(self, step: str, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except RlhfError as error:
            self.fail(step, str(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, the next step must run; it is raised at the end
            if (full := full_disk(error)) is not None:
                self.fail(step, str(full))
            else:
                traceback.print_exc(file=sys.stderr)
                self.fail(step, f"{type(error).__name__}: {error}")
        return None

    def finish(self) -> None:
        """Raise what failed, as one error.

        Raises:
            RunError: a step failed.
        """
        if not self.failures:
            return
        listed = "\n".join(f"- {failure.step}: {failure.reason}" for failure in self.failures)
        raise RunError(
            f"{self._saved}, but what follows failed:\n{listed}",
            fix=self._fix,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
