"""Standard technical English: words of a private dialect do not come back, as names or in prose.

Write the field's term instead: settings, options or config; message or result; fix; attach an adapter;
resume; GPU.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("rlhf", "reward", "policy", "tests", "benchmarks", "notebooks", "docs", "configs")
SUFFIXES = (".py", ".md", ".yaml")

NAMES = frozenset(
    {"told", "said", "mine", "dealt", "mend", "mends", "mended", "hang", "hung"}
    | {"wear", "wears", "wearing", "worn"}
)
"""No part of an identifier is one of these."""
PROSE = re.compile(
    r"\b(told|said|mend(s|ed|ing)?|slips|hung|wears?|wearing|worn|practise|dealt|go(es|ing)? on|"
    r"hang(s|ing)? on|by heart|speaks)\b",
    re.IGNORECASE,
)
"""Neither a comment, a string nor a page contains one of these."""
ALLOWED = (
    "CHANGELOG.md",  # history stays as it was written
    "rlhf/data/demo",  # synthetic conversations are everyday English
    "tests/unit/test_language.py",
)


def files() -> Iterator[tuple[str, Path]]:
    """(path from the root, file) of everything that is checked."""
    pages = [file for file in ROOT.iterdir() if file.suffix in SUFFIXES]
    nested = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*") if file.suffix in SUFFIXES]
    for file in sorted((*pages, *nested)):
        path = file.relative_to(ROOT)
        if not any(path.match(pattern) or path.is_relative_to(pattern) for pattern in ALLOWED):
            yield path.as_posix(), file


def identifiers(source: str) -> Iterator[tuple[int, str]]:
    """(line, name) of everything that a module defines, binds or reads by name."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                yield node.lineno, name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name
            case ast.keyword(arg=str(name)):
                yield node.lineno, name


def prose(source: str, suffix: str) -> Iterator[tuple[int, str]]:
    """(line, text) of a page's lines, or of a module's comments and strings."""
    if suffix != ".py":
        yield from enumerate(source.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            yield from enumerate(token.string.splitlines(), token.start[0])


def faults(source: str, suffix: str) -> list[tuple[int, str]]:
    """(line, word) of each word that must not be there."""
    names = identifiers(source) if suffix == ".py" else ()
    words = [
        (line, name)
        for line, name in names
        if NAMES & set(re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower().split("_"))
    ]
    for line, text in prose(source, suffix):
        words += [(line, match[0]) for match in PROSE.finditer(text)]
    return sorted(words)


def test_no_file_has_a_word_of_the_dialect() -> None:
    places = [
        f"{path}:{line}: {word}"
        for path, file in files()
        for line, word in faults(file.read_text(encoding="utf-8"), file.suffix)
    ]
    assert not places, "\n" + "\n".join(places)


@pytest.mark.parametrize(
    ("source", "suffix", "words"),
    [
        ("said_by_main = 1", ".py", ["said_by_main"]),
        ("def f(told): pass", ".py", ["told"]),
        ("class WearAdapter: pass", ".py", ["WearAdapter"]),
        ("f(mine=1)", ".py", ["mine"]),
        ("undermine = minefield = changed = 1", ".py", []),
        ('"""Mend this line."""', ".py", ["Mend"]),
        ("x = 1  # the card goes on\n", ".py", ["goes on"]),
        ("Adapters\nthat it wears\n", ".md", ["wears"]),
        ("amended, recommends, hardware, software, unsaid", ".yaml", []),
    ],
)
def test_a_word_is_recognised_as_a_name_and_in_prose_but_not_inside_another(
    source: str, suffix: str, words: list[str]
) -> None:
    assert [word for _, word in faults(source, suffix)] == words


def types_of(source: str) -> Iterator[str]:
    """Names of the classes and type aliases that a module defines."""
    for node in ast.parse(source).body:
        match node:
            case ast.ClassDef(name=name):
                yield name
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if (
                name[0].isupper() and not name.isupper()
            ):
                if not (isinstance(value, ast.Call) and ast.unparse(value.func) == "TypeVar"):
                    yield name


def test_no_name_of_a_type_has_three_meanings() -> None:
    modules = [file for folder in ("rlhf", "reward", "policy") for file in (ROOT / folder).rglob("*.py")]
    options = ROOT / "rlhf" / "commands"  # types of command-line options, which no other module imports
    places: dict[str, list[str]] = {}
    for file in modules:
        if not file.is_relative_to(options):
            for name in types_of(file.read_text(encoding="utf-8")):
                places.setdefault(name, []).append(file.relative_to(ROOT).as_posix())
    assert {name: files for name, files in places.items() if len(files) > 2} == {}


def test_types_are_classes_and_aliases() -> None:
    source = 'class Row: pass\nTable = list[Row]\nT = TypeVar("T")\nLIMIT = 3\nCount = TypeVar("Count")'
    assert list(types_of(source)) == ["Row", "Table"]
