"""A YAML file and `key=value` words -> a checked, frozen config. A mistake names its place and the way out."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from rlhf.config.explain import Parts, Problem, dotted, problems
from rlhf.core.errors import ConfigError, did_you_mean

T = TypeVar("T", bound=BaseModel)

MOST_NAMES = 12
"""How many files a message lists at most."""


def load_config(path: Path, schema: type[T], overrides: Sequence[str] = (), output: Path | None = None) -> T:
    """Read a config file, apply `key.sub=value` words in order, and check the result.

    A relative path inside the file is relative to the current folder, as for any other tool.

    Args:
        path: the YAML file.
        schema: what may stand in it.
        overrides: words such as `model.base=embedded` or `stages.0.epochs=2`; the value is read as YAML.
        output: the run folder, where it was given apart; wins over the file and the overrides.

    Raises:
        ConfigError: the file cannot be read, or a key or value is not allowed; all such mistakes are listed.
    """
    text = _read(path)
    data, node = _parse(text, str(path))
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
    found.sort(key=lambda problem: _line(node, problem.parts)[0])
    raise _config_error(path, found, [_place(path, problem.parts, node, typed) for problem in found])


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe loader, which by itself would let the second of two equal keys win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                problem = f"the key {key.value!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _read(path: Path) -> str:
    try:
        if path.exists() and not path.is_dir():
            return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        found = f"{path}: is not text (byte {error.start} is not UTF-8)"
        raise ConfigError(found, allowed="a YAML file in UTF-8") from None
    except PermissionError:
        raise ConfigError(f"{path}: may not be read", fix=f"chmod u+r {path}") from None
    raise _missing(path)


def _missing(path: Path) -> ConfigError:
    """The error for a path that is no file, with the configs nearby."""
    folder = path if path.is_dir() else path.parent
    what = "is a folder, not a config file" if path.is_dir() else "there is no such file"
    names = sorted(str(found) for found in folder.glob("*.y*ml"))
    if not names:
        what += "" if folder.is_dir() else f", and no folder {folder}"
        names = sorted(str(found) for found in Path("configs").rglob("*.y*ml"))
    hint = did_you_mean(str(path), [name for name in names if Path(name).stem == path.stem] or names)
    listed = ", ".join(names[:MOST_NAMES])
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ConfigError(
        f"config {path}: {what} (looked from {Path.cwd()}).{hint}",
        allowed=listed + more,
        fix="" if hint else "give the path of a YAML file",
    )


def _parse(text: str, place: str) -> tuple[Any, yaml.Node | None]:
    """The data of a YAML text, and its nodes, which know their lines."""
    try:
        loader = _StrictLoader(text)
        try:
            node = loader.get_single_node()
            return (None if node is None else loader.construct_document(node)), node
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        lines = text.splitlines()
        if mark is None or not 0 <= mark.line < len(lines):
            raise ConfigError(f"{place}: is not valid YAML: {error.problem}") from None
        fix = (
            "indent with spaces"
            if "\t" in lines[mark.line]
            else f"mend this line: {lines[mark.line].strip()}"
        )
        raise ConfigError(f"{place}:{mark.line + 1}: is not valid YAML: {error.problem}", fix=fix) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{place}: is not valid YAML: {error}") from None


def _apply(data: dict[str, Any], override: str) -> Parts:
    """Set one `key.sub=value` in the data; returns the key that was set."""
    key, equals, text = override.partition("=")
    names = key.split(".")
    if not equals or not all(names):
        raise ConfigError(
            f"command line: found {override!r}", allowed="key=value, for example model.base=embedded"
        )
    try:
        value, _ = _parse(text, "")
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


def _place(path: Path, parts: Parts, node: yaml.Node | None, typed: Sequence[Parts]) -> str:
    """Where a key stands: the command line if it was typed, else file and line."""
    if any(parts[: len(one)] == one for one in typed):
        return "command line"
    line, depth = _line(node, parts)
    if depth < len(parts) and any(one[: len(parts)] == parts for one in typed):
        return "command line"
    return f"{path}:{line}" if line else str(path)


def _line(node: yaml.Node | None, parts: Parts) -> tuple[int, int]:
    """The line (from 1; 0 if unknown) of the deepest part found, and how many parts were found."""
    line = 0
    for depth, part in enumerate(parts):
        if isinstance(node, yaml.MappingNode):
            pairs: Mapping[str, tuple[yaml.Node, yaml.Node]] = {
                pair[0].value: pair for pair in node.value if isinstance(pair[0], yaml.ScalarNode)
            }
            if str(part) not in pairs:
                return line, depth
            key, node = pairs[str(part)]
            line = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line, depth
    return line, len(parts)


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
