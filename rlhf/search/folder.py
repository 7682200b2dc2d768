"""The folder of a search: its files, and checks that it belongs to this search.

config.yaml  search.json  search.csv  search.png  search-keys.png  report.html  study.db (unless `storage`
says otherwise) trials/N/ (a run folder)  trials/N.log (output of its command)  trials/.N.running (locked
while its process runs)
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from rlhf.config.search import SearchConfig
from rlhf.core.errors import OutputError
from rlhf.runs.folder import CONFIG, atomic_write_text
from rlhf.search.storage import SharedStudy, shown_url


def check_folder(folder: Path) -> None:
    """Check that the folder is new, empty, or of a search.

    Raises:
        OutputError: it has other content, or is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.iterdir()):
            return
        stored = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        stored = None
    except OSError as error:
        found = f"{folder} cannot be an output folder: {error.strerror}"
        raise OutputError(found, allowed="a writable folder", fix="another --output") from None
    except yaml.YAMLError as error:
        raise OutputError(f"{folder / CONFIG} is not valid YAML: {error}", fix="another --output") from None
    if not (isinstance(stored, dict) and "parameters" in stored) and not (folder / "trials").is_dir():
        raise OutputError(
            f"the output folder {folder} is not empty, and is not the folder of a search",
            allowed="a new or an empty folder, or the folder of this search",
            fix="another --output",
        )


def check_trials(config: SearchConfig, shared: SharedStudy) -> None:
    """Check that all run folders are trials of this study.

    Raises:
        OutputError: a run folder is not a trial of the study.
    """
    known = shared.numbered()
    folders = [entry for entry in (config.output / "trials").iterdir() if entry.is_dir()]
    unknown = sorted(
        entry.name for entry in folders if entry.name.isdecimal() and int(entry.name) not in known
    )
    if unknown:
        raise OutputError(
            f"{config.output / 'trials' / unknown[0]} is not a trial of the study {config.study!r}, which "
            f"has {len(known)}",
            allowed="the run folders of one study",
            fix="another --output",
        )


def write_config(config: SearchConfig) -> None:
    """Write config.yaml, without the secrets of the storage's URL."""
    content: dict[str, Any] = config.model_dump(mode="json", exclude_none=True)
    if config.storage is not None:
        content["storage"] = shown_url(config.storage)
    atomic_write_text(config.output / CONFIG, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


@contextmanager
def locked(path: Path, *, waiting: Callable[[], None] = lambda: None) -> Iterator[int]:
    """Hold the lock of a file; calls `waiting` first if another process has it. Yields the descriptor.

    A process that inherits the descriptor holds the lock too, until it exits or is killed.
    """
    with path.open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()
