"""A run's rewards in words."""

from __future__ import annotations

from typing import Any

from policy.training.describe import describe_rewards, reward_words
from rlhf.config.policy import PolicyConfig


def config(**settings: Any) -> PolicyConfig:
    return PolicyConfig.model_validate({"output": "x", "data": {"prompts": [{"path": "demo"}]}, **settings})


def test_one_folder() -> None:
    assert describe_rewards(config(reward="a/final")) == ["Reward: adapter a/final"]


def test_everything() -> None:
    settings = config(
        reward=["a", {"function": "gold", "weight": 0.5}, {"classifier": "c", "weight": -1}],
        reward_shaping={
            "normalise": "running",
            "clip": [-5, 5],
            "length_penalty": {"per_token": 0.01, "above": 100},
            "missing": "drop",
        },
        held_out_reward={"server": "http://h:1", "every": 5},
    )
    assert reward_words(settings) == "adapter a + 0.5 x function gold + -1 x classifier c"
    assert describe_rewards(settings) == [
        "Reward: adapter a + 0.5 x function gold + -1 x classifier c",
        "Shaping: normalised by the running mean and deviation, then clipped to -5 .. 5, "
        "then less 0.01 for each token above 100",
        "Answers without a reward are left out and counted",
        "Held-out reward: server http://h:1, before and after training, and at one update in 5",
    ]
