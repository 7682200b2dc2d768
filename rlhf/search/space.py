"""From searched keys to a space Optuna proposes from, checked against the config that the trials start from."""

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
"""What each searched command may be told."""

Stored = str | int | float | bool | None
"""What Optuna can store: a choice that is a list or a mapping is stored as its JSON."""


@dataclass(frozen=True, slots=True)
class Space:
    """The searched keys with what Optuna draws from, and each stored choice with the value it stands for."""

    distributions: Mapping[str, BaseDistribution]
    choices: Mapping[str, Mapping[Stored, Any]]

    def propose(self, trial: Trial) -> dict[str, Stored]:
        """A value for each key; those that the trial has already stay."""
        return {name: _suggest(trial, name, found) for name, found in self.distributions.items()}

    def values(self, stored: Mapping[str, Stored]) -> dict[str, Any]:
        """The values as a config has them."""
        return {
            name: self.choices[name][value] if name in self.choices else value
            for name, value in stored.items()
        }

    def words(self, stored: Mapping[str, Stored]) -> list[str]:
        """The values as `key=value` words of the command line."""
        return [f"{name}={as_yaml(value)}" for name, value in self.values(stored).items()]


def base_config(search: SearchConfig) -> RewardConfig | PolicyConfig:
    """The config that every trial starts from, checked.

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
    """The space of a search. Each end of a range and each choice is tried on the base config by itself.

    Args:
        place: the search's config file, named in errors.

    Raises:
        ConfigError: the base config has no such key, or does not allow a value of it.
    """
    distributions: dict[str, BaseDistribution] = {}
    choices: dict[str, dict[Stored, Any]] = {}
    for name, told in search.parameters.items():
        ends = told.choices if told.choices is not None else [told.low, told.high]
        read = [_try(search, name, value, place) for value in ends]
        if told.choices is None:
            # The schema tells whole numbers from others: 1.0 reads back as 1 where one is meant.
            distributions[name] = _range(name, told, place, whole=all(type(value) is int for value in read))
        else:
            choices[name] = {_stored(choice): choice for choice in told.choices}
            distributions[name] = CategoricalDistribution(list(choices[name]))
    return Space(distributions, choices)


def as_yaml(value: Any) -> str:
    """A value in one line, as it reads back from the command line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def describe(told: ParameterConfig) -> str:
    """A range or its choices in words."""
    if told.choices is not None:
        return "one of " + ", ".join(as_yaml(choice) for choice in told.choices)
    extra = ", by order of magnitude" if told.log else f", in steps of {told.step:g}" if told.step else ""
    return f"{told.low:g} to {told.high:g}{extra}"


def _range(name: str, told: ParameterConfig, place: Path, *, whole: bool) -> BaseDistribution:
    assert told.low is not None
    assert told.high is not None
    if not whole:
        return FloatDistribution(told.low, told.high, log=told.log, step=told.step)
    step = told.step or 1.0
    if not step.is_integer():
        raise ConfigError(
            f"{place}: parameters: {name}: found step {step:g}",
            allowed="a whole step, as the key takes whole numbers",
        )
    return IntDistribution(int(told.low), int(told.high), log=told.log, step=int(step))


def _suggest(trial: Trial, name: str, found: BaseDistribution) -> Stored:
    match found:
        case FloatDistribution():
            return trial.suggest_float(name, found.low, found.high, step=found.step, log=found.log)
        case IntDistribution():
            return trial.suggest_int(name, found.low, found.high, step=found.step, log=found.log)
        case CategoricalDistribution():
            return trial.suggest_categorical(name, found.choices)
    raise TypeError(f"{name}: {found!r}")


def _stored(choice: Any) -> Stored:
    return json.dumps(choice) if isinstance(choice, list | dict) else choice


def _try(search: SearchConfig, name: str, value: Any, place: Path) -> Any:
    """Set one key of the base config, as a trial will; gives the value as the config then has it."""
    words = [*search.overrides, f"{name}={as_yaml(value)}"]
    try:
        checked = load_config(search.config, SCHEMAS[search.command], words, search.output / "trials")
    except ConfigError as error:
        found = f"{place}: parameters: {name}, tried with {as_yaml(value)}: {_without_place(error)}"
        fix = error.fix or "change it here, or set what it goes with by `overrides`"
        raise ConfigError(found, allowed=error.allowed, fix=fix) from None
    at: Any = checked.model_dump(mode="json")
    for part in name.split("."):
        at = at[int(part) if isinstance(at, list) else part]
    return at


def _without_place(error: ConfigError) -> str:
    """What was found; the words are not the user's own command line."""
    return error.found.removeprefix("command line: ")
