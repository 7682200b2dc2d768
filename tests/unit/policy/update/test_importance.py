from __future__ import annotations

import math

import pytest
import torch

from policy.update.losses import engine_logps, importance_weights
from rlhf.core.errors import EngineError
from rlhf.core.records import Rollout

TRAINER = torch.tensor([-1.0, -2.0, -3.0])
ENGINE = torch.tensor([-1.5, -1.0, -5.0])
ANSWER = torch.tensor([0, 0, 1])


def test_tokens_by_hand() -> None:
    # Likelier to the trainer than to the engine: weight above 1. exp(0.5), exp(-1), and exp(2) cut off at 2.
    weights = importance_weights(TRAINER, ENGINE, ANSWER, 2, "token", 2.0)
    assert weights.tolist() == pytest.approx([math.exp(0.5), math.exp(-1), 2.0])


def test_sequences_by_hand() -> None:
    # exp(0.5 - 1) for both tokens of the first answer, exp(2) for the second, cut off at 3.
    weights = importance_weights(TRAINER, ENGINE, ANSWER, 2, "sequence", 3.0)
    assert weights.tolist() == pytest.approx([math.exp(-0.5), math.exp(-0.5), 3.0])


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_equal_log_probabilities_weigh_1(level: str) -> None:
    assert importance_weights(TRAINER, TRAINER, ANSWER, 2, level, 2.0).tolist() == [1.0, 1.0, 1.0]  # type: ignore[arg-type]


def test_the_weights_have_no_gradient() -> None:
    logps = TRAINER.clone().requires_grad_()
    assert not importance_weights(logps, ENGINE, ANSWER, 2, "token", 2.0).requires_grad


def test_the_weighted_mean_is_the_trainers() -> None:
    """E_engine[w x value] = E_trainer[value], exactly, where nothing is cut off; less where the cap bites."""
    trainer = torch.tensor([0.5, 0.3, 0.2], dtype=torch.double)
    engine = torch.tensor([0.6, 0.3, 0.1], dtype=torch.double)
    value = torch.tensor([1.0, 10.0, 100.0], dtype=torch.double)
    each = torch.arange(3)
    weights = importance_weights(trainer.log(), engine.log(), each, 3, "token", 5.0)
    assert float((engine * weights * value).sum()) == pytest.approx(float((trainer * value).sum()))
    cut = importance_weights(trainer.log(), engine.log(), each, 3, "token", 1.5)
    assert float((engine * cut * value).sum()) == pytest.approx(0.5 + 3.0 + 0.1 * 1.5 * 100)


def test_the_engines_log_probabilities() -> None:
    def rollout(*logprobs: float) -> Rollout:
        return Rollout((1,), (5, 6), logprobs, True, "")

    engine = engine_logps([rollout(-1.0, -2.0), rollout(-3.0, -4.0)], like=torch.zeros(4))
    assert engine is not None and engine.tolist() == [-1.0, -2.0, -3.0, -4.0]
    assert engine_logps([rollout(), rollout()], like=torch.zeros(4)) is None
    with pytest.raises(EngineError, match=r"\b2 .*\b4 "):
        engine_logps([rollout(-1.0, -2.0), rollout()], like=torch.zeros(4))
