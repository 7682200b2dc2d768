"""The short notebooks: committed with outputs and pictures, and executed as a reader would."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = ("own-data", "plan")


def read(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_committed(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    text = (FOLDER / f"{name}.ipynb").read_text("utf-8")
    assert len(text) < 400_000
    for output in outputs:
        assert output.output_type != "error"
        shown = output.get("text", "") + output.get("data", {}).get("text/plain", "")
        assert not any(path in shown for path in ("/home/", "/root/", "/work/", "/tmp/")), shown


@pytest.mark.slow
def test_they_run(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    environment |= {"RLHF_RUN": str(tmp_path / "runs"), "RLHF_STEPS": "2"}
    for name in NAMES:
        notebook = read(name)
        client = NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(FOLDER)}})
        client.execute(env=environment)
        assert any(
            "image/png" in output.get("data", {})
            for cell in notebook.cells
            if cell.cell_type == "code"
            for output in cell.outputs
        )
