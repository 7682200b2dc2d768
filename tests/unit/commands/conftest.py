"""A reward model that can be computed by hand, in the place of the real one."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rlhf import cli
from rlhf.core.errors import DataError, ModelError
from rlhf.core.records import Conversation


@dataclass(frozen=True)
class FakeScore:
    reward: float
    attributes: dict[str, float]


@dataclass
class FakeScorer:
    """Rewards the number of "+" in the last message; refuses more than `longest` characters."""

    batches: list[int] = field(default_factory=list)
    options: tuple[str, str | None] | None = None
    reward: Callable[[str], float] = lambda text: float(text.count("+"))
    longest: int = 1000

    tokens_per_batch: int | None = None

    def load(self, path: str, form: str, label: str | None) -> FakeScorer:
        self.options = (form, label)
        if path != "model":
            raise ModelError(f"{path} is not a reward model")
        return self

    def score(self, conversations: Sequence[Conversation]) -> list[FakeScore]:
        self.batches.append(len(conversations))
        texts = [conversation[-1].content for conversation in conversations]
        if any(len(text) > self.longest for text in texts):
            raise DataError("a conversation is too long", allowed=f"at most {self.longest} characters")
        return [
            FakeScore(self.reward(text), {"turns": float(len(c))})
            for text, c in zip(texts, conversations, strict=True)
        ]


@pytest.fixture
def scorer(monkeypatch: pytest.MonkeyPatch) -> FakeScorer:
    fake = FakeScorer()

    def load_scorer(
        model: str,
        *,
        form: str,
        label: str | None,
        tokens_per_batch: int | None = None,
        principles: Sequence[str] = (),
    ) -> FakeScorer:
        assert not principles
        fake.tokens_per_batch = tokens_per_batch
        return fake.load(model, form, label)

    foreign = types.SimpleNamespace(load_scorer=load_scorer)
    monkeypatch.setitem(sys.modules, "reward.load_scorer", foreign)
    return fake


@pytest.fixture
def rlhf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """Runs `rlhf` in an empty folder, on a wide terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *words: CliRunner().invoke(cli.app, list(words), prog_name="rlhf")
