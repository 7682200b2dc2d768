from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from policy.training.kl_control import WINDOW, KLControl, adapt_coefficient


def test_the_coefficient_by_hand() -> None:
    # An error of 0.1 over 50 of 1,000 answers: 1 + 0.1 x 0.05.
    assert adapt_coefficient(0.2, kl=6.6, target=6.0, horizon=1000, answers=50) == pytest.approx(0.2 * 1.005)
    assert adapt_coefficient(0.2, kl=5.4, target=6.0, horizon=1000, answers=50) == pytest.approx(0.2 * 0.995)
    assert adapt_coefficient(0.2, kl=6.0, target=6.0, horizon=1000, answers=50) == 0.2
    # Errors count as 0.2 at most, either way; a negative estimate is an error of -1.
    assert adapt_coefficient(0.2, kl=60.0, target=6.0, horizon=1000, answers=50) == pytest.approx(0.2 * 1.01)
    assert adapt_coefficient(0.2, kl=-3.0, target=6.0, horizon=1000, answers=50) == pytest.approx(0.2 * 0.99)


def test_steering_finds_the_target() -> None:
    """A policy whose KL is 2 / coefficient: the coefficient must come to 2 / 5."""
    coefficient = 0.01
    for _ in range(2000):
        coefficient = adapt_coefficient(coefficient, kl=2 / coefficient, target=5.0, horizon=1000, answers=50)
    assert 2 / coefficient == pytest.approx(5.0, rel=1e-3)


def control(**settings: float | None) -> KLControl:
    return KLControl(0.1, **{"target": None, "horizon": 100.0, "budget": None, **settings})  # type: ignore[arg-type]


def observe(item: KLControl, update: int, kl: float, reward: float) -> None:
    weights = {"w": torch.tensor([float(update)])}
    item.observe(update, charged=kl, kl=kl, reward=reward, answers=10, weights=lambda: weights)


def test_without_target_and_budget_nothing_happens() -> None:
    first = control()
    observe(first, 1, kl=1000.0, reward=1.0)
    assert (first.coefficient, first.stopped, first.best_weights) == (0.1, None, {})


def test_the_budget_ends_the_run_and_the_newest_weights_within_it_are_kept() -> None:
    first = control(budget=2.0)
    for update, kl in enumerate([0.0, 1.0, 2.0, 2.1], start=1):
        assert first.stopped is None
        observe(first, update, kl, reward=5.0 - update)
    # What update 3 measured are the weights after update 2; too few updates to tell rewards apart.
    assert first.stopped == {
        "reason": "kl budget",
        "update": 4,
        "kl": 2.1,
        "budget": 2.0,
        "kept": {"update": 2, "reward": (4 + 3 + 2) / 3, "kl": 2.0},
    }
    assert first.sentence().startswith("Stopped at update 4: the mean KL of an answer, 2.1 nats, exceeds")
    layer = nn.Module()
    layer.w = nn.Parameter(torch.zeros(1))
    first.restore_best(layer)
    assert layer.w.item() == 3.0


def test_the_best_is_by_the_mean_of_a_window() -> None:
    first = control(budget=100.0)
    rewards = [0.0] * WINDOW + [8.0, 8.0] + [0.0] * WINDOW + [9.0]
    for update, reward in enumerate(rewards, start=1):
        observe(first, update, kl=1.0, reward=reward)
    # The first update whose last eight hold both eights; the lone nine comes when they are gone.
    assert first.best == {"update": WINDOW + 1, "reward": 16 / WINDOW, "kl": 1.0}
    assert first.best_weights["w"].item() == WINDOW + 2


def test_a_first_update_beyond_the_budget_keeps_what_there_is() -> None:
    first = control(budget=1.0)
    observe(first, 1, kl=3.0, reward=0.0)
    assert "no update was within the budget" in first.sentence()
    layer = nn.Linear(1, 1)
    before = layer.weight.item()
    first.restore_best(layer)
    assert layer.weight.item() == before


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    first, other = (control(target=1.0, budget=50.0) for _ in range(2))
    for update in range(1, 12):
        observe(first, update, kl=1.0 + 0.1 * update, reward=float(update % 5))
    first.save(tmp_path)
    other.load(tmp_path)
    assert (other.coefficient, other.rewards, other.best) == (first.coefficient, first.rewards, first.best)
    assert other.rewards.maxlen == WINDOW and torch.equal(other.best_weights["w"], first.best_weights["w"])


def test_a_checkpoint_without_it_leaves_the_start(tmp_path: Path) -> None:
    first = control()
    first.load(tmp_path)
    assert first.coefficient == 0.1
