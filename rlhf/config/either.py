"""Loads a config of either training command, which is recognised by its keys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlhf.config.files import read_keys
from rlhf.config.load import load_config
from rlhf.config.policy import PolicyConfig
from rlhf.config.reward import RewardConfig
from rlhf.core.errors import ConfigError

POLICY_KEYS = {"reward", "rollouts", "algorithm"}
"""Keys of a policy config, of which it has at least one; a reward config has none."""


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
    """The schema of a config file; `RewardConfig` for a file that cannot be read, whose error `load_config`
    raises."""
    try:
        data, _ = read_keys(path)
    except ConfigError:
        return RewardConfig
    return PolicyConfig if isinstance(data, dict) and POLICY_KEYS & data.keys() else RewardConfig
