"""The demo's configs of principles and justifications, checked as typed, with the embedded model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("name", "sources"), [("principle", "data.principles"), ("justifier", "data.justifications")]
)
def test_a_demo_config_can_be_run(rlhf_command: Callable[..., Result], name: str, sources: str) -> None:
    words = [CONFIGS / name / "demo.yaml", f"{sources}.0.limit=12", "--dry-run"]
    done = rlhf_command(f"train-{name}", *words)
    assert done.exit_code == 0, done.output
    assert "12 rows read" in done.output
    assert "updates of" in done.output
