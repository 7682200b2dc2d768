"""A YAML file and the files it extends -> plain data, and the line on which each key stands.

`extends: FILE` (relative to the file that says so) starts from the keys of another file: mappings are merged key by key,
anything else, lists too, is replaced.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rlhf.config.explain import Parts
from rlhf.core.errors import ConfigError, did_you_mean

EXTENDS = "extends"
CONFIGS = Path(__file__).parent.parent / "configs"
"""The configs that come with this package."""
MOST_NAMES = 12
"""How many files a message lists at most."""


@dataclass(frozen=True)
class Source:
    """One file, and its YAML nodes, which know their lines."""

    path: Path
    node: yaml.Node | None


def read_keys(path: Path) -> tuple[Any, list[Source]]:
    """The data of a file with all that it extends, and the files themselves, its own first.

    Raises:
        ConfigError: a file cannot be read, or extends itself.
    """
    path = packaged(path)
    data, node = parse(_read(path), str(path))
    sources = [Source(path, node)]
    while isinstance(data, dict) and EXTENDS in data:
        told, last = data.pop(EXTENDS), sources[-1]
        where = f"{last.path}:{line_of(last.node, (EXTENDS,))[0]}: {EXTENDS}"
        if not isinstance(told, str):
            raise ConfigError(f"{where}: found {told!r}", allowed="the path of one YAML file")
        base = Path(os.path.normpath(last.path.parent / told))
        chain = [source.path.resolve() for source in sources]
        if base.resolve() in chain:
            raise ConfigError(f"{where}: {told} comes back to itself", allowed="a file that stands alone")
        under, node = parse(_read(base, where), str(base))
        sources.append(Source(base, node))
        if not isinstance(under, dict):
            raise ConfigError(f"{where}: {told} holds no keys", allowed="a YAML file of `key: value` lines")
        data = _merged(under, data)
    return data, sources


def packaged(path: Path) -> Path:
    """The path of a config: `configs/...` that is not in the current folder is the one that comes with this package."""
    if path.exists() or path.parts[:1] != (CONFIGS.name,):
        return path
    own = CONFIGS.parent / path
    return own if own.is_file() else path


def place_of(sources: Sequence[Source], parts: Parts) -> tuple[str, bool]:
    """`FILE:LINE` of a key, or of the nearest above it in the first file; and whether the key itself stands there."""
    until_list = next((place + 1 for place, part in enumerate(parts) if isinstance(part, int)), len(parts))
    for source in sources:  # a list is never merged: the first file that has it has all of it
        line, depth = line_of(source.node, parts)
        if line and depth >= until_list:
            return f"{source.path}:{line}", depth == len(parts)
    line, _ = line_of(sources[0].node, parts)
    return f"{sources[0].path}:{line}" if line else str(sources[0].path), False


def line_of(node: yaml.Node | None, parts: Parts) -> tuple[int, int]:
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


def parse(text: str, place: str) -> tuple[Any, yaml.Node | None]:
    """The data of a YAML text, and its nodes.

    Raises:
        ConfigError: it is no YAML.
    """
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
        if mark is None or not lines:
            raise ConfigError(f"{place}: is not valid YAML: {error.problem}") from None
        number = min(
            mark.line, len(lines) - 1
        )  # a bracket that is never closed is noticed after the last line
        found = (
            f"{place}:{number + 1}: is not valid YAML: {error.problem}: {_around(lines[number], mark.column)}"
        )
        raise ConfigError(found, fix=_yaml_fix(str(error.problem), lines[number])) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{place}: is not valid YAML: {error}") from None


YAML_FIXES = (
    ("stands twice", "remove one of the two"),
    (
        "mapping values are not allowed",
        "put a value that holds `: ` in quotes, or indent the line as its neighbours",
    ),
    ("cannot start any token", "put the value in quotes"),
    ("undefined alias", "put a value that begins with * in quotes"),
    ("could not find expected ':'", "write `key: value`, with a space after the colon"),
    ("expected ',' or", "close the bracket above, or put a comma between the entries"),
    ("did not find expected", "indent the line as its neighbours"),
    ("unexpected end of stream", "close the quotes"),
)
"""What YAML complains of, and what usually helps."""


def _yaml_fix(problem: str, line: str) -> str:
    if "\t" in line:
        return "indent with spaces"
    if "${" in line and ("'{'" in problem or "expected ','" in problem):
        return "inside { } write $NAME, or put the value in quotes"
    return next((fix for words, fix in YAML_FIXES if words in problem), "correct this line")


def _around(line: str, column: int, width: int = 60) -> str:
    """A line of text around a column, shortened on both sides."""
    start = max(0, min(column - width // 2, len(line) - width))
    shown = line[start : start + width].strip()
    return f"{'...' if start else ''}{shown}{'...' if start + width < len(line) else ''}"


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


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            value = _merged(below, value)
        merged[key] = value
    return merged


def _read(path: Path, asked_by: str = "") -> str:
    try:
        if path.exists() and not path.is_dir():
            return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        found = f"{path}: is not text (byte {error.start} is not UTF-8)"
        raise ConfigError(found, allowed="a YAML file in UTF-8") from None
    except PermissionError:
        raise ConfigError(f"{path}: may not be read", fix=f"chmod u+r {path}") from None
    raise _missing(path, asked_by)


def _missing(path: Path, asked_by: str) -> ConfigError:
    """The error for a path that is no file, with the configs nearby."""
    folder = path if path.is_dir() else path.parent
    what = "is a folder, not a config file" if path.is_dir() else "there is no such file"
    names = sorted(str(found) for found in folder.glob("*.y*ml"))
    if not names:
        what += "" if folder.is_dir() else f", and no folder {folder}"
        folder = Path(CONFIGS.name) if Path(CONFIGS.name).is_dir() else CONFIGS
        names = sorted(str(CONFIGS.name / found.relative_to(folder)) for found in folder.rglob("*.y*ml"))
    hint = did_you_mean(str(path), [name for name in names if Path(name).stem == path.stem] or names)
    listed = ", ".join(names[:MOST_NAMES])
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    who = f"{asked_by} " if asked_by else "config "
    return ConfigError(
        f"{who}{path}: {what} (looked from {Path.cwd()}).{hint}",
        allowed=listed + more,
        fix="" if hint else "give the path of a YAML file",
    )
