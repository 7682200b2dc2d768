"""An update of either trainer on a pretended device: no tensor is left on the CPU, and the host waits for the
device only where it reads the figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CASES = [
    f"{update}-{form}" for update in ("reward", "policy", "ppo") for form in ("float32", "bfloat16", "nf4")
]
CASES += ["principle-bfloat16", "dpo-bfloat16", "justifier-bfloat16", "flex-float32"]
READS = {"reward": 1, "policy": 2, "ppo": 3, "principle": 1, "dpo": 1, "justifier": 0, "flex": 2}
"""Reads of an update of two rows: figures or statistics; the engine's comparison; the critic's figures. A
justifier's loss is read by transformers."""
MISTAKES = ("left-behind", "indexed-by-a-mask", "copied", "read")


@pytest.fixture(scope="module")
def examined() -> dict[str, dict[str, Any]]:
    """The output of `tests/pretended_device.py` by case."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/pretended_device.py"), *CASES, *MISTAKES],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["case"]: line for line in lines}


@pytest.mark.parametrize("case", CASES)
def test_every_gradient_arrives_on_the_device(examined: dict[str, dict[str, Any]], case: str) -> None:
    """No operation meets a tensor on the CPU, and every trained parameter has a gradient."""
    assert "error" not in examined[case], examined[case]["error"]
    assert examined[case]["devices"] == ["pretend:0"]


@pytest.mark.parametrize("case", CASES)
def test_the_host_waits_only_to_read_figures(examined: dict[str, dict[str, Any]], case: str) -> None:
    """The count is that of an update, not of its rows."""
    assert examined[case]["waits"] == ["copy from the device"] * READS[case.partition("-")[0]]


def test_mistakes_are_caught(examined: dict[str, dict[str, Any]]) -> None:
    assert "same device" in examined["left-behind"]["error"]
    assert "nonzero" in examined["indexed-by-a-mask"]["error"]
    assert examined["copied"]["waits"].count("copy to the device") == 2  # once a row
    assert len(examined["read"]["waits"]) == READS["ppo"] + 2
