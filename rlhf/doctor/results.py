"""The result of a check: name, verdict, finding and fix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from rlhf.doctor.facts import GIB, MIB, Facts

CheckVerdict = Literal["ok", "warning", "problem", "not checked"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's output."""

    name: str
    verdict: CheckVerdict
    found: str
    fix: str = ""


Check = Callable[[Facts], Iterator[Finding]]
"""Facts to results; none where the check does not concern the run."""


def size(count: int) -> str:
    """Bytes with a unit: `64 MiB`, `1.5 GiB`."""
    return f"{count / MIB:.0f} MiB" if count < GIB else f"{count / GIB:.1f} GiB"
