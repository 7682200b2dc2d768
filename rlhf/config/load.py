"""A YAML file and `key=value` words -> a checked, frozen config. A mistake names its place and the way out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from rlhf.config.explain import Parts, Problem, dotted, problems
from rlhf.config.files import Source, line_of, parse, place_of, read_keys
from rlhf.core.errors import ConfigError

T = TypeVar("T", bound=BaseModel)


def load_config(path: Path, schema: type[T], overrides: Sequence[str] = (), output: Path | None = None) -> T:
    """Read a config file, apply `key.sub=value` words in order, and check the result.

    A relative path inside the file is relative to the current folder, as for any other tool; that of `extends`, which starts
    from the keys of another file, to the file's own.

    Args:
        path: the YAML file.
        schema: what may stand in it.
        overrides: words such as `model.base=embedded` or `stages.0.epochs=2`; the value is read as YAML.
        output: the run folder, where it was given apart; wins over the file and the overrides.

    Raises:
        ConfigError: the file cannot be read, or a key or value is not allowed; all such mistakes are listed.
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
    typed = [_apply(data, override) for override in overrides]
    if output is not None:
        data["output"] = str(output)
        typed.append(("output",))
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        found = problems(error, schema, data)
    found.sort(key=lambda problem: line_of(sources[0].node, problem.parts)[0])
    raise _config_error(path, found, [_place(sources, problem.parts, typed) for problem in found])


def _apply(data: dict[str, Any], override: str) -> Parts:
    """Set one `key.sub=value` in the data; returns the key that was set."""
    key, equals, text = override.partition("=")
    names = key.split(".")
    if not equals or not all(names):
        raise ConfigError(
            f"command line: found {override!r}", allowed="key=value, for example model.base=embedded"
        )
    try:
        value, _ = parse(text, "")
    except ConfigError:
        raise ConfigError(
            f"command line: the value of {override!r} is not valid YAML",
            fix=f"put it in quotes: {key}='\"...\"'",
        ) from None
    parts: list[str | int] = []
    at: Any = data
    for name in names:
        if parts:
            at = _step_into(at, parts[-1])
        parts.append(_step_name(at, name, dotted(tuple(parts)), override))
    at[parts[-1]] = value
    return tuple(parts)


def _step_into(at: Any, part: str | int) -> Any:
    if isinstance(at, dict) and at.get(part) is None:
        at[part] = {}
    return at[part]


def _step_name(at: Any, name: str, above: str, override: str) -> str | int:
    """The name as a key or a list index of `at`, which is checked to have one."""
    if isinstance(at, dict):
        return name
    if not isinstance(at, list):
        raise ConfigError(
            f"command line: {override!r}: '{above}' holds {at!r}, which has no '{name}' below it"
        )
    if not name.isdecimal() or int(name) >= len(at):
        raise ConfigError(
            f"command line: {override!r}: '{above}' is a list of {len(at)}, and has no item '{name}'",
            allowed=", ".join(str(index) for index in range(len(at))) or "nothing, as it is empty",
            fix=f"to give the whole list, type '{above}=[...]'",
        )
    return int(name)


def _place(sources: Sequence[Source], parts: Parts, typed: Sequence[Parts]) -> str:
    """Where a key stands: the command line if it was typed, else file and line."""
    if any(parts[: len(one)] == one for one in typed):
        return "command line"
    place, stands_there = place_of(sources, parts)
    if not stands_there and any(one[: len(parts)] == parts for one in typed):
        return "command line"
    return place


def _config_error(path: Path, found: Sequence[Problem], places: Sequence[str]) -> ConfigError:
    if len(found) == 1:
        only = found[0]
        return ConfigError(f"{places[0]}: {only.found}", allowed=only.allowed, fix=only.fix)
    lines = [f"{path}: {len(found)} mistakes"]
    for number, (place, problem) in enumerate(zip(places, found, strict=True), start=1):
        lines.append(f"{number}. {place}: {problem.found}")
        if problem.allowed:
            lines.append(f"   Allowed: {problem.allowed}")
    return ConfigError("\n".join(lines), fix="mend these; `--explain` instead of a config lists every key")
