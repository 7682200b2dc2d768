"""A store with three tasks, and complete submissions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf.annotate.records import Submission
from rlhf.annotate.store import Store
from rlhf.annotate.tasks import Task
from rlhf.core.records import HELPSTEER_ATTRIBUTES, Message


def submission(strength: int | None, rating: int = 3, reason: str = "Because.") -> Submission:
    ratings = dict.fromkeys(HELPSTEER_ATTRIBUTES, rating)
    return Submission(
        strength=strength, ratings_1=ratings, ratings_2=ratings | {"helpfulness": 4}, reason=reason
    )


def task(text: str) -> Task:
    return Task((Message("user", f"Tell me about {text}."),), f"{text} is good.", f"{text}!")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "a.db")
    opened.add_tasks([task("tea"), task("bread"), task("snow")])
    yield opened
    opened.close()
