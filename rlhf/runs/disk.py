"""Recognise errors of the file system: a full disk, no access, a name that is too long."""

from __future__ import annotations

import errno
import re
import shutil
import tempfile
from pathlib import Path

from rlhf.core.errors import OutputError, RlhfError, RunError

FULL = (errno.ENOSPC, errno.EDQUOT)
_run_folders: list[Path] = []


def report_space_of(run_folder: Path) -> None:
    """Make `full_disk` state the free space of this folder too: libraries do not name the file."""
    _run_folders.append(run_folder)


NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)


def file_system_error(error: BaseException) -> RlhfError | None:
    """The error to show for a full disk or a path that cannot be used; None for any other error."""
    if isinstance(error, OSError) and error.errno in NO_ACCESS and error.filename:
        return OutputError(
            f"{error.filename}: {str(error.strerror).lower()}",
            allowed="files that this user may read, and folders that it may write to",
            fix="name another path (HF_HOME and RLHF_CACHE name the caches, TMPDIR the folder of temporary "
            "files), or change the rights of this one",
        )
    return full_disk(error)


def full_disk(error: BaseException) -> RunError | None:
    """The error to show if a disk is full or a quota is exceeded; None for any other error.

    safetensors and tokenizers, written in Rust, put the system's error number into their messages.
    """
    if isinstance(error, OSError):
        number, path = error.errno, error.filename
    else:
        from safetensors import SafetensorError  # imported only after a failure

        # tokenizers raises a plain Exception.
        from_rust = isinstance(error, SafetensorError) or type(error) is Exception
        match = re.search(r"\(os error (\d+)\)", str(error)) if from_rust else None
        number, path = int(match[1]) if match else None, None
    if number not in FULL:
        return None
    folders = {"here": Path.cwd(), "for temporary files": Path(tempfile.gettempdir())}
    if _run_folders and _run_folders[-1].exists():
        folders["in the run folder"] = _run_folders[-1]
    free = ", ".join(
        f"{shutil.disk_usage(folder).free / 2**20:,.0f} MiB {name} ({folder})"
        for name, folder in folders.items()
    )
    return RunError(
        f"The disk is full{f', at {path}' if path else ''}. The unfinished file was removed. Free now: "
        f"{free}.",
        fix="free some space, or set TMPDIR to a larger disk for temporary files; then run the command again "
        "(training: with --resume, from its last checkpoint)",
    )
