"""`from rlhf import …`: what is promised to type checkers is there at run time, documented, and costs nothing
before."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import rlhf

SOURCE = Path(rlhf.__file__).read_text(encoding="utf-8")


def promised() -> dict[str, str]:
    """The names imported under TYPE_CHECKING, and their modules."""
    blocks = [node for node in ast.parse(SOURCE).body if isinstance(node, ast.If)]
    (block,) = [node for node in blocks if ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {str(alias.asname): str(node.module) for node in imports for alias in node.names}


def test_there_are_names() -> None:
    assert {"SharedBase", "Scorer", "Message", "load_prompts", "gold_score"} <= promised().keys()


def test_type_checkers_and_the_import_hook_know_the_same_names() -> None:
    assert promised() == rlhf._MODULES


@pytest.mark.parametrize(("name", "home"), sorted(promised().items()))
def test_a_public_name_is_the_one_of_its_module(name: str, home: str) -> None:
    result = getattr(rlhf, name)
    assert result is getattr(importlib.import_module(home), name)
    assert name in dir(rlhf)
    assert inspect.getdoc(result)


def test_public_methods_are_documented_with_their_errors() -> None:
    silent = {"in_float32", "fault"}  # raise nothing: None where float32 is not possible; the error
    for cls in (rlhf.SharedBase, rlhf.Scorer):
        for name, method in inspect.getmembers(cls, callable):
            if not name.startswith("_"):
                documented = inspect.getdoc(method) or ""
                assert documented, f"{cls.__name__}.{name}"
                assert ("Raises:" in documented) != (name in silent), f"{cls.__name__}.{name}"


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'rlhf' has no attribute 'SharedBass'"):
        rlhf.SharedBass  # noqa: B018


def test_torch_is_loaded_by_the_first_name_that_needs_it() -> None:
    code = (
        "import sys, rlhf; rlhf.Message; rlhf.gold_score; dir(rlhf); print('torch' in sys.modules); "
        "rlhf.Score; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
