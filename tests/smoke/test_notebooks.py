"""The notebooks: committed with outputs and pictures, and executed as a reader would."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests import notebooks

FOLDER = Path(__file__).parents[2] / "notebooks"
ALONE = ("own-data", "plan")
TRAINED = ("reward-model", "policy")
"""The second needs the first one's run."""
LOCAL = re.compile(r"(?<![\w.])/(home|root|work|tmp|Users|var)/")


def read(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)  # type: ignore[no-untyped-call]


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(notebook: Any) -> dict[str, list[str]]:
    """What each cell shows: `stdout`, or the richest form of a value; warnings do not count."""
    found = {}
    for cell in code_cells(notebook):
        shown = [
            output.get("name") or next(iter(sorted(output.data, key=lambda mime: mime == "text/plain")))
            for output in cell.outputs
        ]
        found[cell.id] = sorted({kind for kind in shown if kind != "stderr"})
    return found


def execute(name: str, runs: Path) -> Any:
    environment = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
    environment |= {"RLHF_RUN": str(runs), "RLHF_UPDATES": "2"}
    notebook = read(name)
    notebooks.execute(notebook, FOLDER, environment)
    return notebook


@pytest.mark.parametrize("name", [*ALONE, *TRAINED, "adapters"])
def test_outputs_are_committed(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    text = (FOLDER / f"{name}.ipynb").read_text("utf-8")
    assert len(text) < 400_000
    for output in outputs:
        assert output.output_type != "error"
        shown = str(output.get("text", "")) + "".join(
            str(value) for mime, value in output.get("data", {}).items() if mime.startswith("text/")
        )
        assert not LOCAL.search(shown), shown
    private = re.compile(r"^\s*(from|import) (policy|reward|rlhf)\.", re.MULTILINE)
    for cell in cells:
        assert not private.search(cell.source), f"{cell.id} imports what is not public"


def printed(notebook: Any) -> str:
    """The text that all cells print."""
    return "".join(
        output.text
        for cell in code_cells(notebook)
        for output in cell.outputs
        if output.get("name") == "stdout"
    )


@pytest.mark.parametrize("name", ["own-data", pytest.param("plan", marks=pytest.mark.slow)])
def test_it_runs_and_shows_what_is_committed(name: str, tmp_path: Path) -> None:
    """Messages and planned figures too: they are the same on every machine."""
    runs = tmp_path / "runs"
    executed, committed = execute(name, runs), read(name)
    assert kinds(executed) == kinds(committed)
    assert printed(executed).replace(str(runs), "runs/notebooks") == printed(committed)


@pytest.mark.slow
def test_training_notebooks_run_one_after_the_other(tmp_path: Path) -> None:
    for name in TRAINED:
        assert kinds(execute(name, tmp_path / "runs")) == kinds(read(name))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "limit"), [("import time; time.sleep(600)", "no work"), ("while True: pass", "CPU")]
)
def test_a_stuck_notebook_is_ended(code: str, limit: str, tmp_path: Path) -> None:
    """Asleep, or in a loop: found by CPU time, which a busy machine does not change."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])  # type: ignore[no-untyped-call]
    with pytest.raises(notebooks.StuckError, match=limit):
        notebooks.execute(notebook, tmp_path, dict(os.environ), most_seconds=20, idle_seconds=20)
