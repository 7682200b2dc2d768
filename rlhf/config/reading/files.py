"""Reads a YAML file and the files it extends into plain data, with the line of each key.

`extends: FILE` (relative to the file that contains it) starts from the keys of another file: mappings are
merged key by key; any other value, lists included, is replaced.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from rlhf.config.reading.explain import Parts
from rlhf.core.errors import ConfigError, did_you_mean, excerpt, shorten

EXTENDS = "extends"
CONFIGS = Path(__file__).parents[2] / "configs"
"""The configs that are installed with this package."""
MAX_NAMES = 12
"""Number of files that a message lists at most."""


@dataclass(frozen=True)
class ConfigFile:
    """One config file with its YAML nodes, which hold line numbers."""

    path: Path
    node: yaml.Node | None


def read_keys(path: Path) -> tuple[Any, list[ConfigFile]]:
    """The merged data of a file and all files it extends, and these files, the extending one first.

    Raises:
        ConfigError: a file cannot be read, or `extends` is circular.
    """
    path = packaged(path)
    data, node = parse(_read(path), str(path))
    sources = [ConfigFile(path, node)]
    while isinstance(data, dict) and EXTENDS in data:
        name, last = data.pop(EXTENDS), sources[-1]
        where = f"{last.path}:{line_of(last.node, (EXTENDS,))[0]}: {EXTENDS}"
        if not isinstance(name, str):
            raise ConfigError(
                f"{where}: found {excerpt(name)}",
                allowed="the path of one YAML file",
                fix=f"{EXTENDS}: FILE.yaml",
            )
        base = Path(os.path.normpath(last.path.parent / name))
        if not base.exists() and last.path.is_symlink():  # relative to the file that the link points to
            base = Path(os.path.normpath(last.path.resolve().parent / name))
        chain = [source.path.resolve() for source in sources]
        if base.resolve() in chain:
            raise ConfigError(
                f"{where}: {name} is a circular `extends`",
                allowed="a chain of files that ends",
                fix=f"remove `{EXTENDS}` from one of the files: "
                f"{', '.join(str(source.path) for source in sources)}",
            )
        under, node = parse(_read(base, where), str(base))
        sources.append(ConfigFile(base, node))
        if not isinstance(under, dict):
            raise ConfigError(
                f"{where}: {name} is a YAML file without keys",
                allowed="a YAML file of `key: value` lines",
                fix="name another file, or remove `extends`",
            )
        data = _merged(under, data)
    return data, sources


def packaged(path: Path) -> Path:
    """The path of a config: `configs/...` that is not in the current folder is looked up in this package."""
    if path.exists() or path.parts[:1] != (CONFIGS.name,):
        return path
    installed = CONFIGS.parent / path
    return installed if installed.is_file() else path


def place_of(sources: Sequence[ConfigFile], parts: Parts) -> tuple[str, bool]:
    """`FILE:LINE` of a key, or of its nearest parent in the first file; and whether the key itself is
    there."""
    until_list = next((place + 1 for place, part in enumerate(parts) if isinstance(part, int)), len(parts))
    for source in sources:  # lists are not merged: the first file with the list has all of it
        line, depth = line_of(source.node, parts)
        if line and depth >= until_list:
            return f"{source.path}:{line}", depth == len(parts)
    line, _ = line_of(sources[0].node, parts)
    return f"{sources[0].path}:{line}" if line else str(sources[0].path), False


def line_of(node: yaml.Node | None, parts: Parts) -> tuple[int, int]:
    """The line (from 1; 0 if unknown) of the deepest part of a key that exists, and how many parts exist."""
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
        ConfigError: it is not valid YAML.
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
        number = min(mark.line, len(lines) - 1)  # an unclosed bracket is reported after the last line
        line = lines[number]
        raise ConfigError(
            f"{place}:{number + 1}: is not valid YAML: {error.problem}: {shorten(line, mark.column).strip()}",
            fix=_yaml_fix(str(error.problem), line),
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{place}: is not valid YAML: {error}",
            fix="save the file as UTF-8 text without control characters",
        ) from None


INTEGER_TAG = "tag:yaml.org,2002:int"
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$")
YAML_FIXES = (
    ("occurs twice", "remove one of the two"),
    (
        "mapping values are not allowed",
        "put a value that contains `: ` in quotes, or indent the line like its neighbours",
    ),
    ("cannot start any token", "put the value in quotes"),
    ("undefined alias", "put a value that begins with * in quotes"),
    ("could not find expected ':'", "write `key: value`, with a space after the colon"),
    ("expected ',' or", "close the bracket above, or put a comma between the entries"),
    ("did not find expected", "indent the line like its neighbours"),
    ("unexpected end of stream", "close the quotes"),
)
"""The fix for each of YAML's error messages."""


def _yaml_fix(problem: str, line: str) -> str:
    if "\t" in line:
        return "indent with spaces"
    if "${" in line and ("'{'" in problem or "expected ','" in problem):
        return "inside { } write $NAME, or put the value in quotes"
    return next((fix for words, fix in YAML_FIXES if words in problem), "correct this line")


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe loader, but duplicate keys are an error, and 010 and 1:30 are text.

    YAML 1.1 reads them as 8 and as 90.
    """

    yaml_implicit_resolvers: ClassVar[Any] = {  # type: ignore[misc]
        start: [(tag, INTEGER if tag == INTEGER_TAG else pattern) for tag, pattern in resolvers]
        for start, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                problem = f"the key {key.value!r} occurs twice"
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


def _read(path: Path, referrer: str = "") -> str:
    try:
        if path.exists() and not path.is_dir():
            return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        encoding = "UTF-16" if path.read_bytes()[:2] in (b"\xff\xfe", b"\xfe\xff") else "CP1252"
        raise ConfigError(
            f"{path}: is not text (byte {error.start} is not UTF-8)",
            allowed="a YAML file in UTF-8",
            fix=f"iconv -f {encoding} -t UTF-8 {shlex.quote(str(path))} > utf8.yaml",
        ) from None
    except PermissionError:
        raise ConfigError(f"{path}: permission denied", fix=f"chmod u+r {path}") from None
    raise _missing(path, referrer)


def _missing(path: Path, referrer: str) -> ConfigError:
    """The error for a path that is not a file, with the configs nearby."""
    folder = path if path.is_dir() else path.parent
    what = "is a folder, not a config file" if path.is_dir() else "there is no such file"
    if path.is_symlink():
        what = "is a symbolic link to nothing"
    names = sorted(str(file) for file in folder.glob("*.y*ml") if file.exists())
    if not names:
        what += "" if folder.is_dir() else f", and no folder {folder}"
        folder = Path(CONFIGS.name) if Path(CONFIGS.name).is_dir() else CONFIGS
        names = sorted(str(CONFIGS.name / file.relative_to(folder)) for file in folder.rglob("*.y*ml"))
    hint = did_you_mean(str(path), [name for name in names if Path(name).stem == path.stem] or names)
    listed = ", ".join(names[:MAX_NAMES])
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ConfigError(
        f"{referrer or 'config'} {path}: {what} (relative to {Path.cwd()}).{hint}",
        allowed=listed + more,
        fix="" if hint else "name a YAML file; `rlhf configs` lists those that come with rlhf",
    )
