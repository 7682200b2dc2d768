"""Calls of this project's names in notebooks and pages fit their signatures; `make test-slow` runs the
notebooks."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_docs import BY_NAME, ROOT, blocks

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PACKAGES = ("rlhf", "reward", "policy")


def code_of(notebook: Path) -> str:
    """The code cells, without the lines of IPython's own syntax."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    lines = [line for cell in cells if cell["cell_type"] == "code" for line in [*cell["source"], "\n"]]
    return "".join(line for line in lines if not line.lstrip().startswith(("%", "!")))


def misfits(code: str) -> Iterator[str]:
    """A line for each call whose arguments the called function does not take."""
    tree = ast.parse(code)
    known: dict[str, Any] = {
        alias.asname or alias.name: getattr(import_module(node.module), alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (called := resolve(node.func, known)) is not None:
            named = {keyword.arg: None for keyword in node.keywords if keyword.arg is not None}
            try:
                inspect.signature(called).bind_partial(*node.args, **named)
            except TypeError as error:
                yield f"{ast.unparse(node)}: {error}"


def resolve(function: ast.expr, known: dict[str, Any]) -> Callable[..., Any] | None:
    """The imported function or class, or a class's method, that an expression names; else None."""
    if isinstance(function, ast.Name):
        return known.get(function.id)
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        return getattr(known.get(function.value.id), function.attr, None)
    return None


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_calls_in_a_notebook_fit_the_signatures(notebook: Path) -> None:
    assert list(misfits(code_of(notebook))) == []


@pytest.mark.parametrize("name", [name for name in BY_NAME if list(blocks(BY_NAME[name], "python"))])
def test_calls_on_a_page_fit_the_signatures(name: str) -> None:
    assert list(misfits("\n".join(blocks(BY_NAME[name], "python")))) == []


def test_a_misfit_is_noticed() -> None:
    start = "from rlhf import DataSource, SharedBase, load_prompts\n"
    assert list(misfits(f"{start}load_prompts([DataSource(path='demo')])")) == []
    assert "'seed'" in next(misfits(f"{start}load_prompts([], seed=0)"))
    assert "'bas'" in next(misfits(f"{start}SharedBase.load(bas='embedded')"))
