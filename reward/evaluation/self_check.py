"""Check that scores do not depend on their batch. Rounding changes them a little, a masking error a lot.

A handful of conversations is scored alone, together and in reversed order. Beyond the tolerance the same rows
are scored in float32, where rounding all but vanishes and an error stays; a scorer that cannot do so is
judged by the spread of its scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from rlhf.core.errors import DivergenceError, ModelError
from rlhf.core.records import Conversation

TOLERANCE = 0.1
"""Largest change of a score with its batch without a second check; bfloat16 alone changes it by some 0.01."""
FLOAT32_TOLERANCE = 0.005
"""How far float32 may move a score: its rounding is 65,000 times finer than that of bfloat16."""
SPREAD_SHARE = 0.25
"""Of the scores' standard deviation, what rounding may move a score by where float32 cannot be tried."""


class ScoreLike(Protocol):
    """The score of one conversation: see `reward.scorer.Score`."""

    @property
    def reward(self) -> float:
        """The reward."""

    @property
    def attributes(self) -> Mapping[str, float]:
        """Every attribute by name."""


class ScorerLike(Protocol):
    """Anything that scores conversations ending with the assistant's message: see `reward.scorer.Scorer`."""

    def score(self, conversations: Sequence[Conversation]) -> Sequence[ScoreLike]:
        """One score a conversation, in their order."""


@runtime_checkable
class Float32Scorer(Protocol):
    """A scorer that can compute in float32 for a while."""

    def in_float32(self) -> AbstractContextManager[None] | None:
        """A context in which scores are computed in float32; None where the memory does not allow it."""


def self_check(
    scorer: ScorerLike,
    conversations: Sequence[Conversation],
    tolerance: float = TOLERANCE,
    *,
    strict: bool = True,
) -> dict[str, Any]:
    """Score conversations alone, together and in reversed order, and compare.

    difference = |together - alone| / max(1, largest |alone|), for the reward and each attribute: absolute
    for small scores, relative for large ones, with which rounding grows.

    Args:
        strict: raise where the scores depend on the batch; otherwise the result says so.

    Returns:
        `{"largest_difference", "tolerance", "count"}`, and beyond the tolerance `"verdict"`: "rounding" or
        "batch", `"sentence"`, and `"float32_difference"` or `"spread"`.

    Raises:
        ModelError: a score depends on its batch, and not by rounding.
        DivergenceError: a score is not a finite number.
    """
    largest, spread, where = _largest_difference(scorer, conversations)
    result: dict[str, Any] = {
        "largest_difference": largest,
        "tolerance": tolerance,
        "count": len(conversations),
    }
    if largest <= tolerance:
        return result
    precise = scorer.in_float32() if isinstance(scorer, Float32Scorer) else None
    if precise is not None:
        with precise:
            again, _, again_where = _largest_difference(scorer, conversations)
        rounding = again <= FLOAT32_TOLERANCE
        result["float32_difference"] = again
        evidence = f"in float32 by {again:.2g}"
        where = where if rounding else again_where
    else:
        rounding = largest <= SPREAD_SHARE * spread
        result["spread"] = spread
        evidence = f"their standard deviation is {spread:.2g}"
    moved = f"Scores change by up to {largest:.2g} with their batch (allowed: {tolerance:g}; {evidence})"
    if rounding:
        return result | {
            "verdict": "rounding",
            "sentence": f"{moved}: rounding, not an error. Differences between answers smaller than that "
            "mean nothing.",
        }
    error = ModelError(
        f"Scores depend on the batch: {where}. {moved}.",
        allowed=f"a difference up to {tolerance:g}, or one that is rounding",
        fix="check that padding is masked and that pad differs from eos; then score again",
    )
    if strict:
        raise error
    return result | {"verdict": "batch", "sentence": str(error)}


def _largest_difference(
    scorer: ScorerLike, conversations: Sequence[Conversation]
) -> tuple[float, float, str]:
    """The largest difference, the standard deviation of that attribute on the same scale, and where it is."""
    alone = _values([score for conversation in conversations for score in scorer.score([conversation])])
    together = _values(scorer.score(conversations))
    backwards = _values(scorer.score(conversations[::-1])[::-1])
    largest, spread, where = 0.0, 0.0, ""
    for name in alone[0]:
        column = [values[name] for values in alone]
        scale = max(1.0, *map(abs, column))
        mean = sum(column) / len(column)
        deviation = (sum((value - mean) ** 2 for value in column) / len(column)) ** 0.5 / scale
        for number, (expected, *others) in enumerate(zip(alone, together, backwards, strict=True), 1):
            for other in others:
                difference = abs(other[name] - expected[name]) / scale
                if difference > largest:
                    largest, spread = difference, deviation
                    where = (
                        f"conversation {number} of the self-check has {name} {expected[name]:.4g} alone and "
                        f"{other[name]:.4g} beside {len(conversations) - 1} others"
                    )
    return largest, spread, where


def _values(scores: Sequence[ScoreLike]) -> list[dict[str, float]]:
    table = [{"reward": score.reward, **score.attributes} for score in scores]
    for number, values in enumerate(table, 1):
        for name, value in values.items():
            if not math.isfinite(value):
                raise DivergenceError(f"Conversation {number} of the self-check has {name} {value}.")
    return table
