"""Loads a YAML file and `key=value` overrides into a validated, frozen config. Errors name file, line and
key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from rlhf.config.reading.explain import Parts, Problem, dotted, problems
from rlhf.config.reading.files import ConfigFile, line_of, parse, place_of, read_keys
from rlhf.core.errors import ConfigError, excerpt

T = TypeVar("T", bound=BaseModel)


def load_config(path: Path, schema: type[T], overrides: Sequence[str] = (), output: Path | None = None) -> T:
    """Read a config file, apply `key.sub=value` overrides in order, and validate the result.

    Relative paths in the file are relative to the current folder; only that of `extends` is relative to the
    file.

    Args:
        path: the YAML file.
        schema: the allowed keys and values.
        overrides: for example `model.base=embedded` or `stages.0.epochs=2`; values are parsed as YAML.
        output: the run folder from `--output`; takes precedence over the file and the overrides.

    Raises:
        ConfigError: the file cannot be read, or a key or value is not allowed; lists all errors.
    """
    data, sources = read_keys(path)
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(
            f"{path}: found a {type(data).__name__}, not keys with values",
            allowed=f"the keys {', '.join(schema.model_fields)}",
            fix="write one `key: value` a line",
        )
    overridden = [_apply(data, override) for override in overrides]
    if output is not None:
        data["output"] = str(output)
        overridden.append(("output",))
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        errors = problems(error, schema, data)
    errors.sort(key=lambda problem: line_of(sources[0].node, problem.parts)[0])
    raise _config_error(path, errors, [_place(sources, problem.parts, overridden) for problem in errors])


def _apply(data: dict[str, Any], override: str) -> Parts:
    """Set one `key.sub=value` in the data; returns the key that was set."""
    key, equals, text = override.partition("=")
    names = key.split(".")
    if not equals or not all(names):
        raise ConfigError(
            f"command line: found {override!r}",
            allowed="key=value, for example model.base=embedded",
            fix=f"{override.strip('=.') or 'KEY'}=VALUE",
        )
    try:
        value, _ = parse(text, "")
    except ConfigError:
        raise ConfigError(
            f"command line: the value of {override!r} is not valid YAML",
            fix=f"put it in quotes: {key}='\"...\"'",
        ) from None
    parts: list[str | int] = []
    node: Any = data
    for name in names:
        if parts:
            node = _child(node, parts[-1])
        parts.append(_key_or_index(node, name, dotted(tuple(parts)), override))
    node[parts[-1]] = value
    return tuple(parts)


def _child(node: Any, part: str | int) -> Any:
    if isinstance(node, dict) and node.get(part) is None:
        node[part] = {}
    return node[part]


def _key_or_index(node: Any, name: str, parent: str, override: str) -> str | int:
    """The name as a key of a mapping, or as a valid index of a list."""
    if isinstance(node, dict):
        return name
    if not isinstance(node, list):
        raise ConfigError(
            f"command line: {override!r}: '{parent}' is {excerpt(node)}, which has no '{name}' below it",
            allowed="keys below a mapping, and indices of a list",
            fix=f"set the key itself: {parent}=VALUE",
        )
    if not name.isdecimal() or int(name) >= len(node):
        raise ConfigError(
            f"command line: {override!r}: '{parent}' is a list of {len(node)}, and has no item '{name}'",
            allowed=", ".join(str(index) for index in range(len(node))) or "nothing, as it is empty",
            fix=f"to set the whole list, type '{parent}=[...]'",
        )
    return int(name)


def _place(sources: Sequence[ConfigFile], parts: Parts, overridden: Sequence[Parts]) -> str:
    """Where a key was set: `command line` if by an override, else file and line."""
    if any(parts[: len(key)] == key for key in overridden):
        return "command line"
    place, is_there = place_of(sources, parts)
    if not is_there and any(key[: len(parts)] == parts for key in overridden):
        return "command line"
    return place


def _config_error(path: Path, errors: Sequence[Problem], places: Sequence[str]) -> ConfigError:
    if len(errors) == 1:
        only = errors[0]
        return ConfigError(f"{places[0]}: {only.found}", allowed=only.allowed, fix=only.fix)
    lines = [f"{path}: {len(errors)} errors"]
    for number, (place, problem) in enumerate(zip(places, errors, strict=True), start=1):
        lines.append(f"{number}. {place}: {problem.found}")
        if problem.allowed:
            lines.append(f"   Allowed: {problem.allowed}")
        if problem.fix:
            lines.append(f"   Do this: {problem.fix}")
    return ConfigError("\n".join(lines))
