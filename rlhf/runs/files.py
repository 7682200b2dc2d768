"""Files that are complete or absent: text and folders written atomically, JSON lines appended and cut."""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf.core.errors import OutputError

HALF_WRITTEN = ".half-written"
"""Suffix of a file or folder that is not complete yet."""


def atomic_write_text(path: Path, text: str) -> None:
    """Write a file atomically."""
    unfinished = _unfinished(path)
    try:
        with unfinished.open("wb") as file:
            # A lone surrogate, which models and data sets contain, becomes its JSON escape.
            file.write(text.encode("utf-8", "backslashreplace"))
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished, older = _unfinished(path), _unfinished(path)
    unfinished.mkdir()
    try:
        yield unfinished
        mode = 0o666 & unfinished.stat().st_mode  # from the umask
        for file in unfinished.rglob("*"):
            if file.is_file():
                file.chmod(file.stat().st_mode | mode)  # safetensors creates files with mode 600
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        if path.exists():
            path.replace(older)
        try:
            unfinished.replace(path)
        except OSError:
            if older.exists():
                older.replace(path)
            raise
    finally:
        for remainder in (unfinished, older):
            shutil.rmtree(remainder, ignore_errors=True)


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{HALF_WRITTEN}")


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield each leaf of nested mappings and lists as (dotted key, JSON)."""
    children: Sequence[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        children = list(value.items())
    elif isinstance(value, list):
        children = list(enumerate(value))
    if not children:
        yield key, json.dumps(value, ensure_ascii=False, default=str)
    for name, child in children:
        yield from leaves(child, f"{key}.{name}" if key else str(name))


def differences(before: Any, now: Any) -> dict[str, str]:
    """The leaves that differ between two nested values: dotted key -> a line for an error."""
    old, new = dict(leaves(before)), dict(leaves(now))
    return {
        key: f"  {key}: was {old.get(key, 'absent')}, is {new.get(key, 'absent')}"
        for key in new | old
        if old.get(key) != new.get(key)
    }


def append_lines(file: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Append records as JSON lines; non-finite numbers become null."""
    lines = "".join(as_json(record) + "\n" for record in records)
    with file.open("ab") as out:
        out.write(lines.encode("utf-8", "backslashreplace"))


def as_json(value: Any, indent: int | None = None) -> str:
    """A value as JSON; non-finite numbers become null."""
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, indent=indent)


def _finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON does not have, by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def keep_lines(file: Path, last_step: float) -> None:
    """Keep the lines up to a step; drop an incomplete last line."""
    if not file.exists():
        return
    unfinished = _unfinished(file)
    try:
        with file.open("rb") as lines, unfinished.open("wb") as kept:
            for number, line in enumerate(lines, start=1):
                try:
                    step = json.loads(line)["step"]
                except (ValueError, TypeError, KeyError):
                    if next(lines, None) is None:
                        break
                    message = f"{file}:{number} is not JSON with a step"
                    raise OutputError(message, fix="remove the line") from None
                if not line.endswith(b"\n"):
                    break
                if step <= last_step:
                    kept.write(line)
            kept.flush()
            os.fsync(kept.fileno())
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
