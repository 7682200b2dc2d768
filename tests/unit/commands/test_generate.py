"""`rlhf generate`, as typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from typer.testing import Result


def test_several_answers_need_a_format_that_holds_them(rlhf: Callable[..., Result], tmp_path: Path) -> None:
    question = {
        "instruction": "Tell me about tea.",
        "dataset": "helpful_base",
        "output": "",
        "generator": "a",
    }
    (tmp_path / "alpaca_eval.json").write_text(json.dumps([question]))
    words = ["--prompts", "alpaca_eval.json", "--format", "alpaca-eval", "--output", "answers.json"]
    result = rlhf("generate", "embedded", *words, "--samples", "4")
    assert result.exit_code == 2, result.output
    assert "--samples 4" in result.output and "mt-bench or jsonl" in result.output
    assert not (tmp_path / "answers.json").exists()
