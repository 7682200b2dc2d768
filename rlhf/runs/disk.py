"""Recognise a full disk behind an error: every command may run into one at any write."""

from __future__ import annotations

import errno
import re
import shutil
import tempfile
from pathlib import Path

from rlhf.core.errors import RunError

FULL = (errno.ENOSPC, errno.EDQUOT)


def full_disk(error: BaseException) -> RunError | None:
    """The error to show where a disk is full or a quota is spent; None for any other error.

    Files of weights are written by safetensors, whose error says the system's number in words.
    """
    if isinstance(error, OSError):
        number, place = error.errno, error.filename
    else:
        from safetensors import SafetensorError  # not needed until something fails

        match = re.search(r"\(os error (\d+)\)", str(error)) if isinstance(error, SafetensorError) else None
        number, place = int(match[1]) if match else None, None
    if number not in FULL:
        return None
    folders = {"here": Path.cwd(), "for temporary files": Path(tempfile.gettempdir())}
    free = ", ".join(
        f"{shutil.disk_usage(folder).free / 2**20:,.0f} MiB {name} ({folder})"
        for name, folder in folders.items()
    )
    return RunError(
        f"The disk is full{f', at {place}' if place else ''}. What was being written was taken back. Free now: {free}.",
        fix="free some space, or set TMPDIR to a larger disk for temporary files; then type the command again (a run: with --resume, "
        "from its last checkpoint)",
    )
