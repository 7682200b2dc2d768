"""The drop report: counts of rows read and dropped, with reasons and places."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from rlhf.core.errors import DataError

if TYPE_CHECKING:
    from rlhf.core.records import Justification, Preference, Principle, Prompt, Rating

EXAMPLES = 3
"""Places remembered for each reason."""


@dataclass(slots=True)
class DropReport:
    """Counts of the rows read, and of the dropped ones by reason, with the first places of each."""

    read: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    """Remarks on rows that are kept, with the number of rows."""
    sources: dict[str, DropReport] = field(default_factory=dict)
    """The same counts for each source, where a report covers several."""
    digests: dict[str, str] = field(default_factory=dict)
    """A hash of the records of each source, by the config key of its path."""

    @property
    def kept(self) -> int:
        """Rows read and not dropped."""
        return self.read - self.reasons.total()

    def drop(self, reason: str, place: str) -> None:
        """Count one dropped row."""
        self.reasons[reason] += 1
        places = self.examples.setdefault(reason, [])
        if len(places) < EXAMPLES and place not in places:
            places.append(place)

    def merge(self, other: DropReport) -> Self:
        """Add another report's counts, and its sources, to this one, which is returned."""
        self.read += other.read
        self.reasons.update(other.reasons)
        for reason, places in other.examples.items():
            self.examples[reason] = list(dict.fromkeys(self.examples.get(reason, []) + places))[:EXAMPLES]
        self.notes.update(other.notes)
        self.digests.update(other.digests)
        for name, part in other.sources.items():
            self.sources.setdefault(name, DropReport()).merge(part)
        return self

    def lines(self) -> list[str]:
        """The report for people: a total, then one line a reason, the most frequent first."""
        lines = [f"{self.read:,} rows read, {self.kept:,} kept, {self.reasons.total():,} dropped"]
        for reason, count in self.reasons.most_common():
            places = ", ".join(self.examples[reason])
            more = ", ..." if count > len(self.examples[reason]) else ""
            lines.append(f"  {count:>7,}  {reason}: {places}{more}")
        return [*lines, *(f"  note: {line}" for line in self.note_lines())]

    def note_lines(self) -> list[str]:
        """Each note, with the number of rows where it is about several."""
        return [f"{note} ({count:,} rows)" if count > 1 else note for note, count in self.notes.most_common()]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: `{"read", "kept", "dropped": {reason: {"count", "examples"}}}`, and any `notes`."""
        dropped = {
            reason: {"count": count, "examples": list(self.examples[reason])}
            for reason, count in self.reasons.most_common()
        }
        return {
            "read": self.read,
            "kept": self.kept,
            "dropped": dropped,
            **({"notes": dict(self.notes.most_common())} if self.notes else {}),
        }


def place_of(record: Rating | Preference | Principle | Justification | Prompt) -> str:
    """Where a record stands, for a drop report: its row; its source where it was not read from a file."""
    return record.place or record.source or "a record without a place"


def nothing_left(found: str, drops: DropReport, sources: str, held_out: Mapping[str, int]) -> DataError:
    """The error for data of which no row is left to train on.

    Args:
        sources: the config key of the data.
        held_out: usable rows that are held out, by the config key of their share.
    """
    withheld = {key: count for key, count in held_out.items() if count}
    lines = [f"  {count:>7,}  held out by {key}" for key, count in withheld.items()]
    if withheld:
        shares = " ".join(f"{key}=0" for key in withheld)
        fix = f"{shares} to train on the rows that are held out; or add rows to {sources}"
    else:
        fix = f"look at the drop report above; raise model.max_length or widen {sources}"
    return DataError("\n".join([found, *drops.lines(), *lines]), fix=fix)


def drops_line(drops: DropReport) -> str:
    """How many rows were read, kept and dropped."""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in drops.reasons.most_common())
    return f"Rows: {drops.read:,} read, {drops.kept:,} kept" + (f"; dropped: {reasons}" if reasons else "")
