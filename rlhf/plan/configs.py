"""A config of either command: which of the two it is, its keys say. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from rlhf.config.load import load_config
from rlhf.config.policy import PolicyConfig
from rlhf.config.reward import RewardConfig

POLICY_KEYS = {"rollouts", "reward", "algorithm"}
"""A policy's config has one of these at least; a reward model's has none."""


def load_either(path: Path, overrides: Sequence[str] = ()) -> RewardConfig | PolicyConfig:
    """Read a config of `train-reward` or of `align-policy`.

    Raises:
        ConfigError: it cannot be read, or is neither.
    """
    if _is_policy(path):
        return load_config(path, PolicyConfig, overrides)
    return load_config(path, RewardConfig, overrides)


def _is_policy(path: Path) -> bool:
    try:
        told = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False  # reading it properly says what is wrong
    return isinstance(told, dict) and bool(POLICY_KEYS & told.keys())
