from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks are scripts, which import each other from their folder."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
