"""The self-check tells rounding, which it reports, from an error in the mask, which it refuses."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from reward.evaluation.self_check import self_check
from reward.scorer import Scorer
from rlhf.core.errors import ModelError
from rlhf.core.records import Conversation, Message
from rlhf.kernels.precision import float32_products


@dataclass(frozen=True)
class Score:
    reward: float
    attributes: Mapping[str, float] = field(default_factory=dict)


class Moving:
    """Rewards 0, 1, 2 ... for answers of 1, 2, 3 ... characters; in company all of them move by `shift`."""

    def __init__(self, shift: float) -> None:
        self.shift = shift

    def score(self, conversations: Sequence[Conversation]) -> list[Score]:
        move = self.shift if len(conversations) > 1 else 0.0
        return [Score(len(conversation[-1].content) - 1 + move) for conversation in conversations]


class Precise(Moving):
    """The same, and in float32 they move by `exact`."""

    def __init__(self, shift: float, exact: float) -> None:
        super().__init__(shift)
        self.exact = exact

    @contextlib.contextmanager
    def in_float32(self) -> Iterator[None]:
        before, self.shift = self.shift, self.exact
        yield
        self.shift = before


SOME = [(Message("user", "Hi"), Message("assistant", "x" * length)) for length in (1, 2)]
# Rewards 0 and 1: a standard deviation of 0.5, so that without float32 rounding explains 0.125.


def test_what_float32_undoes_is_rounding() -> None:
    result = self_check(Precise(0.4, 0.0), SOME)
    assert (result["verdict"], result["largest_difference"]) == ("rounding", 0.4)
    assert result["float32_difference"] == 0.0 and "rounding" in result["sentence"]


@pytest.mark.parametrize("scorer", [Precise(0.4, 0.4), Moving(0.4), Moving(0.13)])
def test_what_float32_or_the_spread_does_not_explain_is_an_error(scorer: Moving) -> None:
    with pytest.raises(ModelError):
        self_check(scorer, SOME)
    result = self_check(scorer, SOME, strict=False)
    assert result["verdict"] == "batch" and "padding" in result["sentence"]


def test_without_float32_the_spread_of_the_scores_decides() -> None:
    result = self_check(Moving(0.12), SOME)
    assert (result["verdict"], result["spread"]) == ("rounding", 0.5)


def test_within_the_tolerance_nothing_more_is_computed() -> None:
    assert set(self_check(Precise(0.05, 9.0), SOME)) == {"largest_difference", "tolerance", "count"}


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_float32_products_shrink_rounding_and_leave_the_weights(
    tiny_reward: Path, as_configured: None, quantization: str, tmp_path: Path
) -> None:
    """In float32 the scores of a bfloat16 base differ by its rounding; afterwards they are as before."""
    folder = Path(shutil.copytree(tiny_reward, tmp_path / "final"))
    card: dict[str, Any] = json.loads((folder / "reward.json").read_text())
    (folder / "reward.json").write_text(
        json.dumps({**card, "dtype": "bfloat16", "quantization": quantization})
    )
    scorer = Scorer.load(folder)
    conversations = [
        (Message("user", "Name a colour."), Message("assistant", "Blue. " * count)) for count in (1, 9, 30)
    ]

    before = scorer.score(conversations)
    formats = {name: parameter.dtype for name, parameter in scorer.model.named_parameters()}
    with float32_products(scorer.model):
        exact = scorer.score(conversations)
        assert scorer.model.get_input_embeddings().weight.dtype == torch.float32
    assert {name: parameter.dtype for name, parameter in scorer.model.named_parameters()} == formats
    assert scorer.score(conversations) == before
    moved = [abs(item.reward - other.reward) for item, other in zip(before, exact, strict=True)]
    assert 1e-4 < max(moved) < 0.5  # bfloat16 rounds; that it rounds no more would be no float32
