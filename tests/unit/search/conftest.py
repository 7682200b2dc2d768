"""A search whose trials are a tiny script: no model, a tenth of a second each."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf.search import attempt

FAKE = Path(__file__).parent / "fake_trial.py"
RATE = "stages.0.optimizer.learning_rate"

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "POLL_SECONDS", 0.01)


@pytest.fixture
def write_search(tmp_path: Path) -> Write:
    """Writes a base config and a search's config beside it; keys given replace the search's own."""
    base = tmp_path / "base.yaml"
    base.write_text(
        "output: unused\n"
        "data: {ratings: [{path: demo, format: helpsteer2}], preferences: [{path: demo, format: "
        "helpsteer2-preference}]}\n"
        "stages: [{name: both, regression_weight: 1, preference_weight: 1, max_steps: 4}]\n"
    )

    def write(**values: Any) -> Path:
        content = {
            "command": "train-reward",
            "config": str(base),
            "parameters": {RATE: {"low": 1e-5, "high": 1e-2, "log": True}},
            "objective": {"metric": "overall"},
            "trials": 3,
            "output": str(tmp_path / "out"),
            "launch": [sys.executable, str(FAKE)],
        }
        file = tmp_path / "search.yaml"
        file.write_text(yaml.safe_dump(content | values))
        return file

    return write
