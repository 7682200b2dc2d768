"""Every text file is opened as UTF-8, whatever the locale says."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


def unencoded(file: Path) -> Iterator[int]:
    """Lines that open a text file without naming its encoding."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if any(word.arg == "encoding" for word in node.keywords):
            continue
        modes = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        modes += [
            w.value.value for w in node.keywords if w.arg == "mode" and isinstance(w.value, ast.Constant)
        ]
        if name == "read_text" and not node.args:
            yield node.lineno
        if name == "write_text" and len(node.args) == 1:
            yield node.lineno
        if name == "open" and not (modes and "b" in modes[-1]) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            if not (
                isinstance(owner, ast.Name) and owner.id in ("os", "gzip", "track")
            ) and "_opener" not in ast.dump(owner):
                yield node.lineno


def test_every_text_file_is_opened_as_utf_8() -> None:
    files = [file for room in ("rlhf", "reward", "policy") for file in (ROOT / room).rglob("*.py")]
    assert len(files) > 200
    assert [f"{file.relative_to(ROOT)}:{line}" for file in files for line in unencoded(file)] == []
