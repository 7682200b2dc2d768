"""Markdown of tables and lists."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any


def bullets(lines: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"- {_without_markup(line)}" for line in lines)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table, the first column left-aligned, the others right-aligned."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(_without_markup(str(cell)) for cell in line)} |" for line in lines)


def _without_markup(text: str) -> str:
    """One line without HTML: names of sources come from files. Code spans stay as they are."""
    line = " ".join(text.splitlines())
    return re.sub(r"`[^`]*`|<", lambda match: "&lt;" if match[0] == "<" else match[0], line)
