"""Where the KL stands, and with which sign: one row of two answers, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from policy.algorithms.reinforce import Reinforce
from policy.rollouts.probe import EngineProbe
from policy.update.forward import MicroBatch, pack_groups
from policy.update.statistics import UpdateStatistics
from policy.update.step import Update
from rlhf.config.algorithm import AlgorithmConfig, KLConfig
from rlhf.config.rollouts import ImportanceConfig
from rlhf.core.records import Rollout

ROLLOUTS = [Rollout((1,), (5, 6), (-1.0, -1.5), True, ""), Rollout((1,), (7,), (-2.0,), True, "")]
LOGPS = torch.tensor([-1.0, -1.5, -2.5])
REFERENCE = torch.tensor([-2.0, -1.0, -2.0])  # d = 1, -0.5, -0.5
ANSWER = torch.tensor([0, 0, 1])


def new_update(kl: dict[str, Any], importance: ImportanceConfig | None = None) -> Update:
    algorithm = AlgorithmConfig.model_validate({"reduction": "sequence_sum"})
    return Update(
        Reinforce.of(algorithm),
        KLConfig(coefficient=9.0, **kl),
        0.5,  # the coefficient now: not the one it started with
        importance,
        2,
        2.0,
        2.0,
        UpdateStatistics([3.0, 1.0], ROLLOUTS),
        EngineProbe("token", 2.0),
        lambda local: local,
    )


def micro_batch() -> MicroBatch:
    (only,) = pack_groups([ROLLOUTS], 100, 0)
    return only


def step(update: Update) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Penalty, advantages and the gradient of the loss."""
    logps = LOGPS.clone().requires_grad_()
    update.compute_advantages(
        [update.measure(micro_batch(), torch.tensor([3.0, 1.0]), LOGPS, REFERENCE, torch.zeros(3), ANSWER)]
    )
    loss = update.policy_loss(0, micro_batch(), logps)
    ((measured, advantages),) = update.measured
    return measured.penalty_N, advantages.values, torch.autograd.grad(loss, logps)[0]


def test_in_the_reward() -> None:
    penalty, advantages, gradient = step(new_update({"estimator": "k1", "reduction": "sum"}))
    # Half of 1 - 0.5 and of -0.5: rewards 2.75 and 1.25.
    assert penalty.tolist() == [0.25, -0.25]
    assert advantages.tolist() == [1.5, -1.5]
    assert gradient.tolist() == [-0.75, -0.75, 0.75]


def tokens_of(update: Update, rewards: list[float]) -> list[list[float]]:
    """The rewards of the three tokens by answer."""
    update.measure(micro_batch(), torch.tensor(rewards), LOGPS, REFERENCE, torch.zeros(3), ANSWER)
    return [tokens["token_reward"].tolist() for tokens in update.statistics.read().tokens]


def test_the_reward_of_a_token_is_minus_its_penalty_and_the_last_has_the_answers_reward() -> None:
    # 0.5 x k1: 0.5, -0.25, -0.25; rewards 3 and 1.
    update = new_update({"estimator": "k1", "reduction": "sum"})
    assert tokens_of(update, [3.0, 1.0]) == [[-0.5, 3.25], [1.25]]
    # The mean over the two tokens of the first answer: half of each.
    update = new_update({"estimator": "k1", "reduction": "mean"})
    assert tokens_of(update, [3.0, 1.0]) == [[-0.25, 3.125], [1.25]]
    update = new_update({"estimator": "k2", "placement": "loss"})
    assert tokens_of(update, [3.0, 1.0]) == [[0.0, 3.0], [1.0]]


def test_an_answer_that_takes_no_part_has_no_reward_of_a_token() -> None:
    first, second = tokens_of(new_update({"estimator": "k1", "reduction": "sum"}), [float("nan"), 1.0])
    assert all(map(math.isnan, first))
    assert second == [1.25]


def test_in_the_loss() -> None:
    penalty, advantages, gradient = step(
        new_update({"estimator": "k2", "reduction": "sum", "placement": "loss"})
    )
    assert penalty.tolist() == [0.0, 0.0]
    assert advantages.tolist() == [2.0, -2.0]
    # -A / 2 answers, and 0.5 x d / 2 answers: a step down takes a token back towards the reference.
    assert gradient.tolist() == pytest.approx([-1.0 + 0.25, -1.0 - 0.125, 1.0 - 0.125])


def test_importance_weights_only_where_they_are_asked_for() -> None:
    kl = {"estimator": "k1", "reduction": "sum"}
    off, on = new_update(kl), new_update(kl, ImportanceConfig())
    _, _, plain = step(off)
    _, _, weighted = step(on)
    # The trainer finds the last token less likely than the engine did, by a factor of exp(-0.5).
    assert weighted.tolist() == pytest.approx((plain * torch.tensor([0.0, 0.0, -0.5]).exp()).tolist())
    assert off.probe.figures() == on.probe.figures() != {}


def test_a_skipped_group_has_a_penalty_and_no_advantage() -> None:
    """NaN in place of the rewards of a flat group: its answers still differ in KL, and nothing is learned
    from that."""
    update, logps = new_update({"estimator": "k1", "reduction": "sum"}), LOGPS.clone().requires_grad_()
    skipped = torch.tensor([float("nan")] * 2)
    measured = update.measure(micro_batch(), skipped, LOGPS, REFERENCE, torch.zeros(3), ANSWER)
    update.compute_advantages([measured])
    loss = update.policy_loss(0, micro_batch(), logps)
    ((_, advantages),) = update.measured
    assert measured.penalty_N.tolist() == [0.25, -0.25]
    assert advantages.values.tolist() == [0.0, 0.0]
    assert torch.autograd.grad(loss, logps)[0].tolist() == [0.0, 0.0, 0.0]
