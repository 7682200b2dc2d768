"""The page of a search."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Rlhf = Callable[..., Any]
Write = Callable[..., Path]


def test_the_report_command_knows_a_search(rlhf_command: Rlhf, write_search: Write, tmp_path: Path) -> None:
    parameters = {
        "benchmark": {"choices": ["<b>one</b>", "two $ $"]},
        "stages.0.optimizer.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
    }
    searched = rlhf_command("search", write_search(parameters=parameters, trials=3))
    assert searched.exit_code == 0, searched.output
    page = tmp_path / "page.html"
    result = rlhf_command("report", tmp_path / "out", "--output", page)
    assert result.exit_code == 0, result.output
    assert "<b>one</b>" not in page.read_text() and "&lt;b&gt;one&lt;/b&gt;" in page.read_text()
    (tmp_path / "out" / "search.json").write_text("{")
    result = rlhf_command("report", tmp_path / "out")
    assert result.exit_code == 2 and "search.json" in result.stderr
