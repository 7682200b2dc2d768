"""Where a command may write: checked before the work, not after it."""

from __future__ import annotations

import os
from pathlib import Path

from rlhf.core.errors import OutputError


def require_output_file(path: Path) -> None:
    """Make sure a file can be written here.

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
        raise OutputError(f"--output {path}: the folder {path.parent} cannot be written to.")


def require_output_folder(path: Path) -> None:
    """Make sure a folder can be made here.

    Raises:
        OutputError: something is there already, or the folder around it cannot be written to.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputError(
            f"--output {path} is there already.", allowed="a new or an empty folder", fix="another --output"
        )
    around = next(parent for parent in path.absolute().parents if parent.exists())
    if not around.is_dir() or not os.access(around, os.W_OK):
        raise OutputError(f"--output {path}: {around} is no folder that can be written to.")
