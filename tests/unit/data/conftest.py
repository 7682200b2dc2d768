from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"

WriteRows = Callable[[str, Iterable[Mapping[str, Any]]], str]


@pytest.fixture
def write_rows(tmp_path: Path) -> WriteRows:
    """Write rows as JSON Lines, compressed where the name ends in .gz, and return the path as a string."""

    def write(name: str, rows: Iterable[Mapping[str, Any]]) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return str(path)

    return write


@pytest.fixture
def shared() -> Path:
    """The folder of real data beside the repository; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the real data in ../shared/data is not on this machine")
    return SHARED
