"""What a check says: a name, a verdict, what was found, and the mend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from rlhf.doctor.facts import GIB, MIB, Facts

Verdict = Literal["ok", "warning", "problem", "not checked"]


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the doctor's."""

    name: str
    verdict: Verdict
    found: str
    fix: str = ""


Check = Callable[[Facts], Iterator[Result]]
"""Facts -> its lines; none where they do not concern the run."""


def size(count: int) -> str:
    """Bytes for people: `64 MiB`, `1.5 GiB`."""
    return f"{count / MIB:.0f} MiB" if count < GIB else f"{count / GIB:.1f} GiB"
