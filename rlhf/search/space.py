"""The search space: Optuna's distributions of the searched keys, checked against the config of the trials."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import Trial

from rlhf.config.load import load_config
from rlhf.config.policy import PolicyConfig
from rlhf.config.reward import RewardConfig
from rlhf.config.search import ParameterConfig, SearchConfig
from rlhf.core.errors import ConfigError

SCHEMAS: dict[str, type[RewardConfig] | type[PolicyConfig]] = {
    "train-reward": RewardConfig,
    "align-policy": PolicyConfig,
}
"""The schema of each searched command."""

Stored = str | int | float | bool | None
"""Values that Optuna can store; a choice that is a list or a mapping is stored as JSON."""


@dataclass(frozen=True, slots=True)
class Space:
    """The distribution of each searched key, and the value of each stored choice."""

    distributions: Mapping[str, BaseDistribution]
    choices: Mapping[str, Mapping[Stored, Any]]

    def propose(self, trial: Trial) -> dict[str, Stored]:
        """A value for each key; values that the trial already has are kept."""
        return {
            name: _suggest(trial, name, distribution) for name, distribution in self.distributions.items()
        }

    def values(self, stored: Mapping[str, Stored]) -> dict[str, Any]:
        """The values as in a config."""
        return {
            name: self.choices[name][value] if name in self.choices else value
            for name, value in stored.items()
        }

    def words(self, stored: Mapping[str, Stored]) -> list[str]:
        """The values as `key=value` overrides."""
        return [f"{name}={as_yaml(value)}" for name, value in self.values(stored).items()]


def base_config(search: SearchConfig) -> RewardConfig | PolicyConfig:
    """The validated config that every trial starts from.

    Raises:
        ConfigError: the file, or one of the overrides, is not allowed.
    """
    schema, trials = SCHEMAS[search.command], search.output / "trials"
    plain = load_config(search.config, schema, (), trials)
    try:
        return load_config(search.config, schema, search.overrides, trials) if search.overrides else plain
    except ConfigError as error:
        found = f"overrides: {_without_place(error)}"
        raise ConfigError(found, allowed=error.allowed, fix=error.fix) from None


def read_space(search: SearchConfig, place: Path) -> Space:
    """The space of a search. Each end of a range and each choice is validated in the base config.

    Args:
        place: the path of the search's config, for errors.

    Raises:
        ConfigError: the base config has no such key, or a value is not allowed.
    """
    distributions: dict[str, BaseDistribution] = {}
    choices: dict[str, dict[Stored, Any]] = {}
    for name, parameter in search.parameters.items():
        ends = parameter.choices if parameter.choices is not None else [parameter.low, parameter.high]
        read = [_try(search, name, value, place) for value in ends]
        if parameter.choices is None:
            # The schema decides which keys are integers: 1.0 is loaded as 1 there.
            distributions[name] = _range(
                name, parameter, place, whole=all(type(value) is int for value in read)
            )
        else:
            choices[name] = {_stored(choice): choice for choice in parameter.choices}
            distributions[name] = CategoricalDistribution(list(choices[name]))
    return Space(distributions, choices)


def as_yaml(value: Any) -> str:
    """A value as YAML in one line, for the command line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def describe(parameter: ParameterConfig) -> str:
    """A range or its choices in words."""
    if parameter.choices is not None:
        return "one of " + ", ".join(as_yaml(choice) for choice in parameter.choices)
    extra = ", log scale" if parameter.log else f", in steps of {parameter.step:g}" if parameter.step else ""
    return f"{parameter.low:g} to {parameter.high:g}{extra}"


def _range(name: str, parameter: ParameterConfig, place: Path, *, whole: bool) -> BaseDistribution:
    assert parameter.low is not None
    assert parameter.high is not None
    if not whole:
        return FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)
    step = parameter.step or 1.0
    if not step.is_integer():
        raise ConfigError(
            f"{place}: parameters: {name}: found step {step:g}",
            allowed="a whole step, as the key is a whole number",
            fix=f"parameters.{name}.step={max(1, round(step))}",
        )
    return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log, step=int(step))


def _suggest(trial: Trial, name: str, distribution: BaseDistribution) -> Stored:
    match distribution:
        case FloatDistribution():
            return trial.suggest_float(
                name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
            )
        case IntDistribution():
            return trial.suggest_int(
                name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
            )
        case CategoricalDistribution():
            return trial.suggest_categorical(name, distribution.choices)
    raise TypeError(f"{name}: {distribution!r}")


def _stored(choice: Any) -> Stored:
    return json.dumps(choice) if isinstance(choice, list | dict) else choice


def _try(search: SearchConfig, name: str, value: Any, place: Path) -> Any:
    """The value of a key in the base config after an override with `value`, as for a trial."""
    words = [*search.overrides, f"{name}={as_yaml(value)}"]
    try:
        checked = load_config(search.config, SCHEMAS[search.command], words, search.output / "trials")
    except ConfigError as error:
        found = f"{place}: parameters: {name}, tried with {as_yaml(value)}: {_without_place(error)}"
        fix = error.fix or "change it here, or set the keys that it needs in `overrides`"
        raise ConfigError(found, allowed=error.allowed, fix=fix) from None
    node: Any = checked.model_dump(mode="json")
    for part in name.split("."):
        node = node[int(part) if isinstance(node, list) else part]
    return node


def _without_place(error: ConfigError) -> str:
    """The message without `command line`, as the overrides are those of the search."""
    return error.found.removeprefix("command line: ")
