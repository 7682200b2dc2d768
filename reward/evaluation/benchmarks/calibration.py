"""Calibration: whether a reward model's margins are log-odds.

A Bradley-Terry model says that the first of two answers is better with the probability sigmoid(margin),
margin being the difference of their rewards. Only a model trained by that loss says so: margins of one fitted
to ratings alone are no log-odds.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

from reward.evaluation.benchmarks.breakdown import Outcome, shares

BINS = 10
"""Bins of equal width between a confidence of 0.5 and one of 1."""


def calibration(
    margins: Sequence[float], prompts: Sequence[Hashable] | None = None, *, bins: int = BINS
) -> dict[str, Any]:
    """Reliability, expected calibration error, Brier score and log loss of margins `chosen - rejected`.

    Which answer of a pair comes first says nothing, so both orders count: the model prefers one answer with
    the confidence c = sigmoid(|margin|) in 0.5..1 and is right where margin > 0; a margin of 0 is a coin,
    half right.

        ece = sum_b n_b / n |right_b - c_b|
        brier = mean (1 - sigmoid(margin))^2
        log_loss = mean log(1 + e^-margin)

    right_b and c_b are the share of right pairs and the mean confidence of the n_b pairs in a bin, low <= c <
    high (the last bin holds 1 too). A coin has Brier score 1/4 and log loss log 2 = 0.693 nats.

    Args:
        prompts: the prompt of each pair, for the bins' intervals, see `effective_count`; None: all differ.

    Returns:
        `{"ece", "brier", "log_loss", "bins": [{"low", "high", "confidence", "accuracy", "count", "ci95"},
        ...]}`; an empty bin has a count of 0 and None for the rest.

    Source: Guo et al. (2017), "On Calibration of Modern Neural Networks", equation 3; Brier (1950).
    """
    confidences: list[list[float]] = [[] for _ in range(bins)]
    outcomes: list[list[Outcome]] = [[] for _ in range(bins)]
    for margin, prompt in zip(margins, prompts or range(len(margins)), strict=True):
        confidence = 1 / (1 + math.exp(-abs(margin)))
        place = min(bins - 1, int((confidence - 0.5) * 2 * bins))
        confidences[place].append(confidence)
        outcomes[place].append((0.5 if margin == 0 else float(margin > 0), prompt))
    table = [
        {
            "low": 0.5 + place / (2 * bins),
            "high": 0.5 + (place + 1) / (2 * bins),
            "confidence": math.fsum(members) / len(members) if members else None,
            **shares(outcomes[place]),
        }
        for place, members in enumerate(confidences)
    ]
    count = len(margins)
    gaps = (
        abs(math.fsum(right for right, _ in members) - math.fsum(sure))
        for members, sure in zip(outcomes, confidences, strict=True)
    )
    return {
        "ece": math.fsum(gaps) / count,
        "brier": math.fsum(_wrong(margin) ** 2 for margin in margins) / count,
        "log_loss": math.fsum(max(-m, 0.0) + math.log1p(math.exp(-abs(m))) for m in margins) / count,
        "bins": table,
    }


def _wrong(margin: float) -> float:
    """1 - sigmoid(margin), without overflow."""
    small = math.exp(-abs(margin))
    return (small if margin > 0 else 1.0) / (1 + small)
