"""Stop a run in this process as if it was killed, and compare two runs bit by bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

MEASURED = ("time/", "memory/", "engine/tokens_per_second")


class Killed(BaseException):
    """Simulates SIGKILL: no code catches it."""


@contextmanager
def killed_after(update: int) -> Iterator[None]:
    """The run in this block stops as if killed, after it has logged this update."""
    from rlhf.runs.folder import RunFolder

    log = RunFolder.metrics

    def metrics(self: RunFolder, now: int, values: Any) -> None:
        log(self, now, values)
        if now == update:
            raise Killed

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(RunFolder, "metrics", metrics)
        try:
            yield
        except Killed:
            return
    pytest.fail(f"the run ended before update {update}")


def figures(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what is measured."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith(MEASURED)} for row in rows]


def assert_same_run(run: Path, unbroken: Path) -> None:
    """The same figures and the same trained weights."""
    assert figures(run) == figures(unbroken)
    full = (run / "final" / "config.json").exists()
    file = "model.safetensors" if full else "adapter_model.safetensors"
    ours, theirs = (load_file(folder / "final" / file) for folder in (run, unbroken))
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)
