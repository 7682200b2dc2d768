"""Check an output folder without writing into it, for `--dry-run`."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel

from rlhf.core.errors import OutputError
from rlhf.runs.folder import CONFIG, check_same_run, in_use, no_run_note, occupied


def check_output(path: Path, config: BaseModel, *, resume: bool) -> list[str]:
    """Notes about an output folder: what must be added to the command.

    Raises:
        OutputError: it cannot be made or written to, or, with `resume`, it is in use or no run folder.
        ConfigError: with `resume`, a config key differs that may not change.
    """
    present = next(parent for parent in (path.absolute(), *path.absolute().parents) if os.path.exists(parent))  # noqa: PTH110 - False without access
    if not present.is_dir() or not os.access(present, os.W_OK | os.X_OK):
        reason = "may not be written to" if present.is_dir() else "is a file"
        raise OutputError(
            f"{path} cannot be an output folder: {present} {reason}",
            allowed="a writable folder",
            fix="another --output",
        )
    if not path.is_dir() or not occupied(path):
        return [no_run_note(path)] if resume else []
    if not resume:
        return [f"Note: the output folder {path} is not empty: add --resume, or name another --output."]
    if not (path / CONFIG).exists():
        raise OutputError(
            f"{path} is not a run folder: it contains files, but no {CONFIG}", fix="another --output"
        )
    if in_use(path):
        raise OutputError(f"the output folder {path} is in use by another run", fix="wait for it to end")
    check_same_run(path / CONFIG, config, config.model_dump(mode="json"))
    return []
