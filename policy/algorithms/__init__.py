"""Algorithms by name, one file each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from policy.algorithms.ppo import PPO
from policy.algorithms.protocol import Algorithm
from policy.algorithms.reinforce import Reinforce
from policy.algorithms.rloo import RLOO
from rlhf.config.algorithm import AlgorithmConfig

ALGORITHMS: Mapping[str, Callable[[AlgorithmConfig], Algorithm]] = {
    "reinforce": Reinforce.of,
    "rloo": RLOO.of,
    "ppo": PPO.of,
}
