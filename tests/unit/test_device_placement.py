"""No tensor of a row's computation is left on the CPU: forward, loss and backward of both trainers on a
pretended device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CASES = ("reward-float32", "reward-bfloat16", "policy-float32", "policy-bfloat16")


@pytest.fixture(scope="module")
def printed() -> dict[str, str]:
    """What `tests/pretended_device.py` says of each case."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/pretended_device.py"), *CASES, "left-behind"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    return dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)


@pytest.mark.parametrize("case", CASES)
def test_every_gradient_arrives_on_the_device(printed: dict[str, str], case: str) -> None:
    """No operation met a tensor on the CPU on the way, and every trained parameter has a gradient."""
    assert printed[case] == "pretend:0"


def test_a_batch_left_on_the_cpu_is_caught(printed: dict[str, str]) -> None:
    assert "Expected all tensors to be on the same device" in printed["left-behind"]
