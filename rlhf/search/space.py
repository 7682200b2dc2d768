"""The search space: values for the searched keys, checked against the config of the trials."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import Trial

from rlhf.config.load import load_config
from rlhf.config.policy import PolicyConfig
from rlhf.config.reading.values import as_yaml
from rlhf.config.reward import RewardConfig
from rlhf.config.search import ParameterConfig, SearchConfig
from rlhf.core.errors import ConfigError

SCHEMAS: dict[str, type[RewardConfig] | type[PolicyConfig]] = {
    "train-reward": RewardConfig,
    "align-policy": PolicyConfig,
}
"""The schema of each searched command."""


@dataclass(frozen=True, slots=True)
class Space:
    """The searched keys.

    Attributes:
        parameters: the range or choices of each key. Optuna stores a choice as JSON, as it may be a list.
        integers: the keys that are whole numbers in the schema, where 1.0 is loaded as 1.
    """

    parameters: Mapping[str, ParameterConfig]
    integers: frozenset[str]

    def propose(self, trial: Trial) -> None:
        """Set a value for each key of a trial; values that the trial already has are kept."""
        for name, key in self.parameters.items():
            if key.choices is not None:
                trial.suggest_categorical(name, [json.dumps(choice) for choice in key.choices])
                continue
            assert key.low is not None
            assert key.high is not None
            if name in self.integers:
                trial.suggest_int(name, int(key.low), int(key.high), step=int(key.step or 1), log=key.log)
            else:
                trial.suggest_float(name, key.low, key.high, step=key.step, log=key.log)

    def values(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a trial as in a config."""
        return {
            name: json.loads(value) if isinstance(value, str) else value for name, value in stored.items()
        }


def words_of(values: Mapping[str, Any]) -> list[str]:
    """The values of a trial as `key=value` overrides."""
    return [f"{name}={as_yaml(value)}" for name, value in values.items()]


def base_config(search: SearchConfig, words: Sequence[str] = ()) -> RewardConfig | PolicyConfig:
    """The validated config that every trial starts from, with further overrides.

    Raises:
        ConfigError: the file, or an override, is not allowed.
    """
    try:
        schema, overrides = SCHEMAS[search.command], [*search.overrides, *words]
        return load_config(search.config, schema, overrides, search.output / "trials")
    except ConfigError as error:
        found = error.found.replace("command line: ", "overrides: ", 1)
        raise ConfigError(found, allowed=error.allowed, fix=error.fix) from None


def read_space(search: SearchConfig, place: Path) -> Space:
    """The space of a search. Each end of a range and each choice is validated in the base config.

    Args:
        place: the path of the search's config, for errors.

    Raises:
        ConfigError: the base config has no such key, or a value is not allowed.
    """
    integers = set()
    for name, key in search.parameters.items():
        ends = key.choices if key.choices is not None else [key.low, key.high]
        loaded = [_load(search, name, value, place) for value in ends]
        if key.choices is not None or not all(type(value) is int for value in loaded):
            continue
        integers.add(name)
        if key.step is not None and not key.step.is_integer():
            raise ConfigError(
                f"{place}: parameters: {name}: found step {key.step:g}",
                allowed="a whole step, as the key is a whole number",
                fix=f"parameters.{name}.step={max(1, round(key.step))}",
            )
    return Space(search.parameters, frozenset(integers))


def _load(search: SearchConfig, name: str, value: Any, place: Path) -> Any:
    """The value of a key in the base config after an override with `value`, as for a trial."""
    try:
        node: Any = base_config(search, [f"{name}={as_yaml(value)}"]).model_dump(mode="json")
    except ConfigError as error:
        found = error.found.removeprefix("overrides: ")
        fix = error.fix or "change it here, or set the keys that it needs in `overrides`"
        tried = f"{place}: parameters: {name}, tried with {as_yaml(value)}"
        raise ConfigError(f"{tried}: {found}", allowed=error.allowed, fix=fix) from None
    for part in name.split("."):
        node = node[int(part) if isinstance(node, list) else part]
    return node
