"""Tests that need a GPU: skipped elsewhere, with a reason. RLHF_GPU_TESTS=cpu runs what a CPU can on the tiny
model: it tries the tests.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ON_CPU = os.environ.get("RLHF_GPU_TESTS") == "cpu"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        item.add_marker(pytest.mark.gpu)
        needs_cuda = item.get_closest_marker("cuda_only") is not None
        if not torch.cuda.is_available() and (needs_cuda or not ON_CPU):
            item.add_marker(
                pytest.mark.skip(reason="needs an NVIDIA GPU: `make test-gpu` on a machine with one")
            )


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs of `benchmarks/`, which the tests share."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


@pytest.fixture(scope="session")
def kind() -> str:
    """Which shape the base has: SmolLM2's on a GPU."""
    import torch

    return "smol" if torch.cuda.is_available() else "tiny"


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
    import json

    return lambda run: [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
