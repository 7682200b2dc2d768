"""The steps after training: a failed step is reported at the end, and the other steps still run.

A run of many hours must not lose its evaluation, model card or report because an earlier check failed.
Weights are written before the first of these steps. Each step runs even if others failed, unless it needs a
file that one of them should have written.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from rlhf.core.errors import RlhfError, RunError
from rlhf.distributed import processes
from rlhf.runs.disk import file_system_error

T = TypeVar("T")


def is_finished(run: Path) -> bool:
    """Whether a run folder has an evaluation, and no step after training failed."""
    file = run / "eval.json"
    return file.exists() and "failures" not in json.loads(file.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Failure:
    """A step that failed, and why."""

    step: str
    reason: str


class AfterTraining:
    """The steps after training. At the end of a `with` block all failures are raised as one error.

    With several processes, a process whose collective step failed skips all further collective steps, since
    the others may still wait in the failed step. It runs its local steps, then exits, and the launcher stops
    the others.

    Args:
        saved: a clause for the error message: what is complete and on disk before the first step.
        fix: the fix in the error message.

    Attributes:
        failures: the failures so far, in order.
    """

    def __init__(
        self,
        saved: str = "Training is complete and its weights are saved",
        fix: str = "fix the cause, then run the command again with --resume; training is not repeated",
    ) -> None:
        self.failures: list[Failure] = []
        self._saved, self._fix = saved, fix
        self._skip_collectives = False

    def run(self, step: str, work: Callable[[], T], *, needs: Path | None = None) -> T | None:
        """Run a collective step, in all processes.

        Args:
            needs: a file or folder of an earlier step; if it is missing because a step failed, this one is
                skipped.

        Returns:
            Its result; None if it failed or was skipped.
        """
        if self._skip_collectives:
            self.failures.append(Failure(step, "skipped after the failure above"))
            return None
        if self._is_lost(needs):
            return None
        result = self._try(step, work)
        self._skip_collectives = (
            bool(self.failures) and self.failures[-1].step == step and processes.world_size() > 1
        )
        return result

    def on_main(self, step: str, work: Callable[[], T], *, needs: Path | None = None) -> T | None:
        """Like `run`, for a step in the main process only, without a collective."""
        return None if not processes.is_main() or self._is_lost(needs) else self._try(step, work)

    def _is_lost(self, needs: Path | None) -> bool:
        return needs is not None and bool(self.failures) and not needs.exists()

    def fail(self, step: str, reason: str) -> None:
        """Record a failure that a step reports without raising."""
        self.failures.append(Failure(step, reason))

    def as_dict(self) -> dict[str, list[dict[str, str]]]:
        """The failures so far, for a result file; empty if there are none."""
        return {"failures": [asdict(failure) for failure in self.failures]} if self.failures else {}

    def _try(self, step: str, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except RlhfError as error:
            self.fail(step, str(error))
        except Exception as error:  # noqa: BLE001 - the next step must run; raised at the end
            if (known := file_system_error(error) or processes.lost_process(error)) is not None:
                self.fail(step, str(known))
            else:
                traceback.print_exc(file=sys.stderr)
                self.fail(step, f"{type(error).__name__}: {error}")
        return None

    def finish(self) -> None:
        """Raise all failures as one error.

        Raises:
            RunError: a step failed.
        """
        if not self.failures:
            return
        listed = "\n".join(f"- {failure.step}: {failure.reason}" for failure in self.failures)
        raise RunError(
            f"{self._saved}, but later steps failed:\n{listed}",
            fix=self._fix,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
