"""The reference pages of the Python API: one for each public name, generated from signature and docstring."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import rlhf

ROW = re.compile(r"^\| `(\w+)` \| (stable|experimental) \| `([\w.]+)` \| (.+) \|$", re.MULTILINE)
"""A line of the table in api.md."""
PROMISE = {
    "stable": "keeps its meaning and arguments within a minor version",
    "experimental": "may change in any version",
}


def with_links(text: str) -> str:
    """api.md with a link at each name of its table."""
    return ROW.sub(
        lambda row: row[0].replace(f"`{row[1]}`", f"[`{row[1]}`](reference/api/{row[1]}.md)", 1), text
    )


def api_pages(text: str) -> Mapping[str, str]:
    """Name -> page, for each line of the table in api.md."""
    return {row[1]: "\n".join(_page(row[1], row[2], row[3])) for row in ROW.finditer(text)}


def _page(name: str, status: str, module: str) -> Iterator[str]:
    value = getattr(rlhf, name)
    source = f"{module.replace('.', '/')}.py"
    yield f"# {name}\n\n**{status.capitalize()}**: {PROMISE[status]}. Source: `{source}`.\n"
    yield f"```python\nfrom rlhf import {name}\n```\n"
    yield _described(name, value)
    if inspect.isclass(value) and issubclass(value, BaseModel):
        yield "Its keys are in the [config reference](../config.md).\n"
    elif inspect.isclass(value):
        for method, member in inspect.getmembers(value, callable):
            if not method.startswith("_") and getattr(member, "__qualname__", "").startswith(f"{name}."):
                yield f"## {method}\n\n{_described(f'{name}.{method}', member)}"
    yield "[All names](../../api.md)\n"


def _described(name: str, value: Any) -> str:
    is_config = inspect.isclass(value) and issubclass(value, BaseModel)
    signature = "" if is_config else _signature(name, value)
    return f"{signature}``` {{ .text .docstring }}\n{inspect.getdoc(value)}\n```\n"


class _Plain(str):
    """An annotation that is printed without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _signature(name: str, value: Any) -> str:
    """The signature, with an argument on each line where it has several."""
    parts = [
        str(part.replace(annotation=_Plain(part.annotation)) if isinstance(part.annotation, str) else part)
        for part in inspect.signature(value).parameters.values()
    ]
    returned = inspect.signature(value).return_annotation
    arrow = "" if inspect.isclass(value) or returned is inspect.Signature.empty else f" -> {returned}"
    inside = "".join(f"\n    {part}," for part in parts) + "\n" if len(parts) > 1 else "".join(parts)
    return f"```python\n{name}({inside}){arrow}\n```\n\n"


def write_api(folder: Path, text: str) -> None:
    """Write api.md, with its links, and the page of each name."""
    (folder / "api.md").write_text(with_links(text), "utf-8")
    pages = folder / "reference" / "api"
    pages.mkdir(parents=True)
    for name, page in api_pages(text).items():
        (pages / f"{name}.md").write_text(page, "utf-8")
