"""Answers of one token, drawn from four: the optimum is known, and each algorithm must come to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from policy.algorithms.protocol import MeasuredBatch
from policy.training.trainer import ALGORITHMS
from policy.update.losses import kl_loss, kl_of_tokens
from rlhf.config.algorithm import AlgorithmConfig
from rlhf.core.records import Rollout

REWARD = torch.tensor([0.0, 1.0, 2.0, 0.5])
REFERENCE = torch.tensor([0.4, 0.3, 0.1, 0.2])
BETA = 1.0
PROMPTS, GROUP, UPDATES = 64, 4, 300


def tilted() -> Tensor:
    """The policy of the highest E[reward] - beta KL(policy || reference): pi_ref exp(reward / beta),
    normalised."""
    weights = REFERENCE * (REWARD / BETA).exp()
    return weights / weights.sum()


def other_direction() -> Tensor:
    """The policy of the highest E[reward] - beta KL(reference || policy): beta pi_ref / (c - reward), c so
    that it sums to 1."""
    low, high = float(REWARD.max()) + 1e-9, float(REWARD.max()) + 10
    for _ in range(100):
        c = (low + high) / 2
        low, high = (c, high) if float((BETA * REFERENCE / (c - REWARD)).sum()) > 1 else (low, c)
    return BETA * REFERENCE / (low - REWARD)


def learn(settings: dict[str, Any], *, biased_engine: bool = False) -> Tensor:
    """The policy after some updates of the loop in small: sample, measure, advantages, objective, step."""
    config = AlgorithmConfig.model_validate(settings)
    algorithm, kl = ALGORITHMS[config.name](config), config.kl
    logits, value = REFERENCE.log().requires_grad_(), torch.zeros((), requires_grad=True)
    optimizer = torch.optim.Adam([logits, value], lr=0.05, betas=(0.5, 0.9))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=UPDATES)
    draw = torch.Generator().manual_seed(0)
    count = PROMPTS * GROUP
    answer_M = torch.arange(count)
    rollouts = [Rollout((1,), (1,), (), True, "")] * count
    last: list[Tensor] = []
    for _ in range(UPDATES):
        logps = torch.log_softmax(logits, dim=0)
        engine = logps.detach() + (torch.tensor([0.0, 0.4, -0.4, 0.2]) if biased_engine else 0.0)
        engine = torch.log_softmax(engine, dim=0)
        actions = torch.multinomial(engine.exp(), count, replacement=True, generator=draw)
        reference_M, old_M = REFERENCE.log()[actions], logps.detach()[actions]
        penalty_M = kl.coefficient * kl_of_tokens(old_M - reference_M, kl.estimator)
        measured = MeasuredBatch(
            rewards_N=REWARD[actions],
            penalty_M=penalty_M if kl.placement == "reward" else torch.zeros(count),
            finished_N=torch.ones(count, dtype=torch.bool),
            answer_M=answer_M,
            logps_M=old_M,
            reference_M=reference_M,
            importance_M=(old_M - engine[actions]).exp() if biased_engine else None,
            group_size=GROUP,
            values_M=value.detach().expand(count) if algorithm.critic else None,
        )
        (result,), _ = algorithm.compute_advantages([measured], lambda local: local)
        for _ in range(algorithm.epochs):
            logps_M = torch.log_softmax(logits, dim=0)[actions]
            denominator = algorithm.denominator(rollouts)
            loss = algorithm.objective(logps_M, measured, result.values, denominator).loss
            if algorithm.critic is not None and result.returns_M is not None:
                expected_M = value.expand(count)
                loss = (
                    loss
                    + algorithm.critic.objective(expected_M, measured, result.returns_M, denominator).loss
                )
            if kl.placement == "loss":
                loss = loss + kl.coefficient * kl_loss(
                    logps_M, reference_M, answer_M, measured.finished_N, kl.estimator, kl.reduction, count
                )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        schedule.step()
        last = [*last[-49:], torch.softmax(logits.detach(), dim=0)]
    return torch.stack(last).mean(dim=0)


def distance(a: Tensor, b: Tensor) -> float:
    """Total variation."""
    return float((a - b).abs().sum()) / 2


IN_REWARD = {"estimator": "k1", "reduction": "sum", "coefficient": BETA}
IN_LOSS = {"placement": "loss", "reduction": "sum", "coefficient": BETA}


def test_the_optima_are_apart() -> None:
    assert float(other_direction().sum()) == pytest.approx(1.0, abs=1e-5)
    apart = [distance(tilted(), other) for other in (REFERENCE, other_direction())]
    assert min(apart) > 0.08


@pytest.mark.parametrize(
    "settings",
    [
        {"kl": IN_REWARD},
        {"kl": IN_REWARD, "compat": True},
        {"kl": IN_REWARD, "name": "rloo"},
        {"kl": IN_REWARD, "name": "rloo", "epochs": 2},
        {"kl": IN_REWARD, "name": "ppo"},
        {"kl": IN_REWARD, "name": "ppo", "epochs": 1, "critic": {"whiten": False, "clip": None}},
        {"kl": IN_LOSS | {"estimator": "k2"}},
        {"kl": IN_LOSS | {"estimator": "k2"}, "name": "rloo"},
        {"kl": IN_LOSS | {"estimator": "k2"}, "name": "ppo", "critic": {"whiten": False}},
    ],
    ids=str,
)
def test_the_optimum_is_reached(settings: dict[str, Any]) -> None:
    assert distance(learn(settings), tilted()) < 0.03


def test_k3_in_the_loss_comes_to_the_other_optimum() -> None:
    assert distance(learn({"kl": IN_LOSS | {"estimator": "k3"}}), other_direction()) < 0.03


def test_k1_in_the_loss_holds_nothing_back() -> None:
    """With a penalty that should keep it near the reference, it goes where a run without any penalty goes."""
    result = learn({"kl": IN_LOSS | {"estimator": "k1"}})
    assert float(result[2]) > 0.9 > float(tilted()[2]) + 0.3


def test_without_a_penalty_the_best_answer_wins() -> None:
    for name in ("reinforce", "rloo", "ppo"):
        assert float(learn({"name": name, "kl": {"coefficient": 0}})[2]) > 0.95, name


@pytest.mark.parametrize("name", ["reinforce", "ppo"])
def test_importance_weights_undo_an_engine_that_samples_otherwise(name: str) -> None:
    assert distance(learn({"name": name, "kl": IN_REWARD}, biased_engine=True), tilted()) < 0.03
