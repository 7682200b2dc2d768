"""Annotators, what they submit, and whether it is complete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rlhf.core.records import HELPSTEER_ATTRIBUTES
from rlhf.data.annotations import NEITHER_VALID

STRENGTHS = (-3, -2, -1, 1, 2, 3)
"""Preferences an annotator can pick; negative prefers response 1. HelpSteer2-Preference has no tie."""
HIGHEST_RATING = 4
LONGEST_REASON = 20_000

Rating = Annotated[int, Field(ge=0, le=HIGHEST_RATING)]


def is_complete(ratings: Mapping[str, int]) -> bool:
    """Whether every attribute of a response is rated."""
    return all(name in ratings for name in HELPSTEER_ATTRIBUTES)


class Submission(BaseModel):
    """One annotator's view of one task; a draft may be incomplete.

    Ratings and strength are in terms of responses 1 and 2, whatever side they were shown on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    strength: int | None = None
    ratings_1: dict[str, Rating] = Field(default_factory=dict)
    ratings_2: dict[str, Rating] = Field(default_factory=dict)
    reason: str = Field(default="", max_length=LONGEST_REASON)

    @model_validator(mode="after")
    def _known_values(self) -> Self:
        if self.strength not in (None, NEITHER_VALID, *STRENGTHS):
            raise ValueError(f"strength {self.strength} is none of {STRENGTHS} and {NEITHER_VALID}")
        if unknown := (set(self.ratings_1) | set(self.ratings_2)) - set(HELPSTEER_ATTRIBUTES):
            raise ValueError(f"unknown attributes {sorted(unknown)}")
        return self

    def missing(self, sides: tuple[str, str] = ("response 1", "response 2")) -> list[str]:
        """What a final submission still needs; empty where it is complete.

        Args:
            sides: what the two responses are called in the message.
        """
        missing = [] if self.strength is not None else ["a preference"]
        if self.strength != NEITHER_VALID:
            for ratings, side in zip((self.ratings_1, self.ratings_2), sides, strict=True):
                if names := [name for name in HELPSTEER_ATTRIBUTES if name not in ratings]:
                    missing.append(f"{', '.join(names)} of the {side}")
        if not self.reason.strip():
            missing.append("a reason")
        return missing

    def swapped(self) -> Submission:
        """The same with the responses exchanged."""
        strength = self.strength
        if strength is not None and strength != NEITHER_VALID:
            strength = -strength
        return Submission(
            strength=strength, ratings_1=self.ratings_2, ratings_2=self.ratings_1, reason=self.reason
        )


@dataclass(frozen=True, slots=True)
class Annotator:
    """A person with a token."""

    name: str
    adjudicates: bool


@dataclass(frozen=True, slots=True)
class Annotation:
    """What one annotator saved of one task."""

    task: int
    annotator: str
    final: bool
    submission: Submission
    seconds: float
    version: float = 0.0
    """When it was saved, in seconds since 1970."""


def by_task(annotations: Sequence[Annotation]) -> dict[int, list[Annotation]]:
    """Annotations of each task, in their order."""
    tasks: dict[int, list[Annotation]] = {}
    for annotation in annotations:
        tasks.setdefault(annotation.task, []).append(annotation)
    return tasks
