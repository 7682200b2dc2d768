"""Loads a config of `train-reward` or `align-policy`, which is recognised by its keys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from rlhf.config.dpo import DPOConfig
from rlhf.config.justifier import JustifierConfig
from rlhf.config.load import load_config
from rlhf.config.policy import PolicyConfig
from rlhf.config.policy_table import PolicyTableConfig
from rlhf.config.principle import PrincipleConfig
from rlhf.config.reading.files import read_keys
from rlhf.config.reward import RewardConfig
from rlhf.core.errors import ConfigError

OTHERS: dict[type[BaseModel], str] = {
    DPOConfig: "train-dpo",
    PolicyTableConfig: "policy-table",
    PrincipleConfig: "train-principle",
    JustifierConfig: "train-justifier",
}
"""Schemas of other commands."""
BY_DATA: dict[str, type[BaseModel]] = {"principles": PrincipleConfig, "justifications": JustifierConfig}
"""Schemas by a key of `data` that only they have."""
POLICY_KEYS = {"reward", "rollouts", "algorithm"}
"""Keys of a policy config, of which it has at least one; a reward config has none."""


def load_either(
    path: Path, overrides: Sequence[str] = (), output: Path | None = None
) -> RewardConfig | PolicyConfig:
    """Read a config of `train-reward` or of `align-policy`, as `load_config` does.

    Raises:
        ConfigError: it cannot be read, or is neither.
    """
    schema = schema_of(path)
    if schema in OTHERS:
        command = OTHERS[schema]
        raise ConfigError(
            f"{path} is a config of {command}.",
            allowed="a config of train-reward or align-policy",
            fix=f"rlhf {command} {path} --dry-run, which checks the config and counts its data",
        )
    if schema is PolicyConfig:
        return load_config(path, PolicyConfig, overrides, output)
    return load_config(path, RewardConfig, overrides, output)


def schema_of(path: Path) -> type[BaseModel]:
    """The schema of a config file; `RewardConfig` for a file that cannot be read, whose error `load_config`
    raises."""
    try:
        data, _ = read_keys(path)
    except ConfigError:
        return RewardConfig
    if not isinstance(data, dict):
        return RewardConfig
    content = data.get("data")
    for key in BY_DATA.keys() & (content if isinstance(content, dict) else {}).keys():
        return BY_DATA[key]
    if "dpo" in data:
        return PolicyTableConfig
    if {"beta", "loss"} & data.keys():
        return DPOConfig
    return PolicyConfig if POLICY_KEYS & data.keys() else RewardConfig
