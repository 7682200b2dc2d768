"""Checks that a command can write its output, before any work."""

from __future__ import annotations

import os
from pathlib import Path

from rlhf.core.errors import OutputError


def require_output_file(path: Path) -> None:
    """Check that a file can be written to a path.

    Raises:
        OutputError: the path is a folder, or its folder does not exist or cannot be written to.
    """
    if path.is_dir():
        raise OutputError(f"--output {path} is a folder.", allowed="the name of a file", fix=f"{path}/NAME")
    if not path.parent.is_dir():
        raise OutputError(
            f"--output {path}: the folder {path.parent} does not exist.", fix=f"mkdir -p {path.parent}"
        )
    if not os.access(path.parent, os.W_OK):
        raise OutputError(
            f"--output {path}: the folder {path.parent} is not writable.",
            fix=f"chmod u+w {path.parent}, or another --output",
        )


def require_output_folder(path: Path, option: str = "--output") -> None:
    """Check that a folder can be created at a path.

    Raises:
        OutputError: the path exists and is not an empty folder, or its parent is not writable.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputError(
            f"{option} {path} exists already.", allowed="a new or an empty folder", fix=f"another {option}"
        )
    around = next(parent for parent in path.absolute().parents if parent.exists())
    if not around.is_dir() or not os.access(around, os.W_OK):
        raise OutputError(f"{option} {path}: {around} is not a writable folder.", fix=f"another {option}")
