"""A config of either training command: which of the two it is for, its keys say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlhf.config.files import read_keys
from rlhf.config.load import load_config
from rlhf.config.policy import PolicyConfig
from rlhf.config.reward import RewardConfig
from rlhf.core.errors import ConfigError

POLICY_KEYS = {"reward", "rollouts", "algorithm"}
"""A policy's config has one of these at least; a reward model's has none."""


def load_either(
    path: Path, overrides: Sequence[str] = (), output: Path | None = None
) -> RewardConfig | PolicyConfig:
    """Read a config of `train-reward` or of `align-policy`, as `load_config` does.

    Raises:
        ConfigError: it cannot be read, or is neither.
    """
    if schema_of(path) is PolicyConfig:
        return load_config(path, PolicyConfig, overrides, output)
    return load_config(path, RewardConfig, overrides, output)


def schema_of(path: Path) -> type[RewardConfig] | type[PolicyConfig]:
    """Which command a config is for; of one that cannot be read, `load_config` says why."""
    try:
        told, _ = read_keys(path)
    except ConfigError:
        return RewardConfig
    return PolicyConfig if isinstance(told, dict) and POLICY_KEYS & told.keys() else RewardConfig
