"""Every test runs on an NVIDIA GPU (`gpu`) and, with a tiny base, on a CPU (`slow`), which tries its code."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(
    scope="session",
    params=[pytest.param("cuda", marks=pytest.mark.gpu), pytest.param("cpu", marks=pytest.mark.slow)],
)
def device(request: pytest.FixtureRequest) -> str:
    """The type of the device that torch sees on this machine."""
    import torch

    wanted, seen = str(request.param), "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and seen == "cpu":
        pytest.skip("needs an NVIDIA GPU: `make test-gpu` on a machine with one")
    if wanted == "cpu" and seen == "cuda":
        pytest.skip("this machine has a GPU, which the same test uses")
    return wanted


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tests import the programs of `benchmarks/`."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


@pytest.fixture(scope="session")
def kind(device: str) -> str:
    """The shape of the base: SmolLM2's on a GPU."""
    return "smol" if device == "cuda" else "tiny"


@pytest.fixture(scope="session")
def gpu_base(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with random weights."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from gpu_models import make_base
    finally:
        sys.path.pop(0)
    return Path(make_base(kind, tmp_path_factory.mktemp("gpu") / kind))


@pytest.fixture
def rows() -> Any:
    """The lines of a run's metrics."""
    return lambda run: [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="session")
def timeout() -> float:
    """Seconds for a command; a busy machine needs more."""
    return float(os.environ.get("RLHF_TEST_LAUNCH_TIMEOUT", "600"))
