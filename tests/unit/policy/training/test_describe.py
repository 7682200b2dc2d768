from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from policy.training.describe import describe_algorithm, describe_roles, other_bases
from rlhf.config.algorithm import AlgorithmConfig
from rlhf.config.policy import PolicyConfig


def lines(**settings: Any) -> list[str]:
    return describe_algorithm(AlgorithmConfig.model_validate(settings), longest=100)


def test_reinforce() -> None:
    beta = 0.01 / 50 * 2 / math.sqrt(math.pi * 0.05)
    assert lines() == [
        "Algorithm: reinforce; loss: token_mean; unfinished answers: drop",
        "KL penalty: 0.01 x mean of abs over an answer's tokens, in the reward",
        f"In TRL's convention (beta x sum of k1, in the reward): beta = {beta:.3g} = coefficient / L, for "
        "answers of L = 50 tokens "
        "(half of rollouts.max_new_tokens), x 2 / sqrt(pi k), the mean of |d| over that of d, for a KL of "
        "k = 0.05 nats a token",
    ]


def test_rloo_is_in_trls_convention_already() -> None:
    assert lines(name="rloo")[2].endswith("beta = 0.05 = coefficient")


@pytest.mark.parametrize(
    ("reduction", "kl_reduction", "beta", "formula"),
    [
        # The penalty is a mean over answers, the policy's loss over tokens: 50 times as strong.
        ("token_mean", "sum", 0.1 * 50, "coefficient x L"),
        ("sequence_mean", "sum", 0.1 * 50, "coefficient x L"),
        ("sequence_sum", "sum", 0.1, "coefficient"),
        ("token_mean", "mean", 0.1, "coefficient"),
        ("sequence_sum", "mean", 0.1 / 50, "coefficient / L"),
    ],
)
def test_a_penalty_in_the_loss_is_compared_with_the_loss_beside_it(
    reduction: str, kl_reduction: str, beta: float, formula: str
) -> None:
    kl = {"estimator": "k2", "reduction": kl_reduction, "placement": "loss", "coefficient": 0.1}
    line = lines(reduction=reduction, kl=kl)[2]
    assert line.partition(", for")[0].endswith(f"beta = {beta:.3g} = {formula}")


def test_ppo_charges_the_kl_token_by_token() -> None:
    assert lines(name="ppo")[:2] == [
        "Algorithm: ppo; loss: token_mean; unfinished answers: drop",
        "KL penalty: 0.01 x sum of k1 over an answer's tokens, in the reward of each token",
    ]
    assert lines(name="ppo", kl={"placement": "loss"})[1].endswith("in the loss")


def config(**settings: Any) -> PolicyConfig:
    return PolicyConfig.model_validate(
        {"output": "runs/p", "reward": "runs/r/final", "data": {"prompts": [{"path": "demo"}]}, **settings}
    )


def test_the_roles_beside_the_policy() -> None:
    assert describe_roles(config()) == ["Reference: the base"]
    settings = config(
        start="runs/1/final",
        reward={"function": "gold"},
        algorithm={
            "name": "ppo",
            "epochs": 3,
            "critic": {"whiten": False, "clip": None, "gae_lambda": 1, "warmup_steps": 5},
        },
    )
    assert describe_roles(settings) == [
        "Reference: a frozen copy of runs/1/final, from which the policy starts",
        "Critic: an adapter and a head of one output; starts from a fresh adapter and a head of zeros; "
        "learning rate 0.0003, "
        "no clip; only the critic is trained for 5 updates",
        "Advantages: per token, discount 1, lambda 1",
        "Epochs per update: 3, each with an optimizer step of policy and critic",
    ]
    assert "starts from runs/r/final; " in describe_roles(config(algorithm={"name": "ppo"}))[1]


def test_what_else_there_is_to_say() -> None:
    settings = lines(compat=True, kl={"target": 6, "budget": 12, "horizon": 500})
    assert settings[0].startswith("Algorithm: reinforce, with NeMo-Aligner's bugs; loss: sequence_mean")
    assert settings[3:] == [
        "The coefficient is adapted to a KL of 6, with a horizon of 500 answers",
        "The run stops when the mean KL of an answer exceeds 12 nats",
    ]


@pytest.mark.parametrize(("estimator", "noted"), [("k1", True), ("abs", True), ("k2", False), ("k3", True)])
def test_a_gradient_that_is_not_the_kls_is_noted(estimator: str, noted: bool) -> None:
    settings = lines(kl={"estimator": estimator, "placement": "loss"})
    assert any(line.startswith(f"Note: in the loss, {estimator} has ") for line in settings) == noted
    assert not any("Note" in line for line in lines(kl={"estimator": estimator}))


def test_reward_models_whose_cards_name_another_base(tiny_base: Path, tiny_reward: Path) -> None:
    def notes(base: str) -> list[str]:
        body = {"output": "x", "model": {"base": base}, "data": {"prompts": [{"path": "demo"}]}}
        reward = [str(tiny_reward), {"ensemble": {"adapters": [str(tiny_reward)] * 2}}, {"function": "gold"}]
        return other_bases(PolicyConfig.model_validate({**body, "reward": reward}))

    assert notes(str(tiny_base)) == []
    (note,) = notes("embedded")
    assert f"{tiny_reward} was trained on {tiny_base}, and model.base is embedded" in note
