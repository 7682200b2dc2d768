"""The folder of a search: its files, and that it belongs to this search.

config.yaml  search.json  search.csv  search.png  report.html  study.db (unless `storage` says otherwise)
trials/N/ (a run folder)  trials/N.log (what its command printed)  trials/.N.running (locked while its process runs)
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
    """Make sure that the folder is new, empty, or a search's.

    Raises:
        OutputError: it is something else, or cannot be written.
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
        raise OutputError(found, allowed="a folder that can be written", fix="another --output") from None
    except yaml.YAMLError as error:
        raise OutputError(f"{folder / CONFIG} is not valid YAML: {error}") from None
    if not (isinstance(stored, dict) and "parameters" in stored) and not (folder / "trials").is_dir():
        raise OutputError(
            f"the output folder {folder} is not empty, and holds no search",
            allowed="a new or an empty folder, or that of this search",
            fix="another --output",
        )


def check_trials(told: SearchConfig, shared: SharedStudy) -> None:
    """Make sure that no trial here is of another study: its result must not be taken for one of ours.

    Raises:
        OutputError: the study does not know a run folder that is here.
    """
    known = shared.numbered()
    folders = [entry for entry in (told.output / "trials").iterdir() if entry.is_dir()]
    unknown = sorted(
        entry.name for entry in folders if entry.name.isdecimal() and int(entry.name) not in known
    )
    if unknown:
        raise OutputError(
            f"{told.output / 'trials' / unknown[0]} is no trial of the study {told.study!r}, which has {len(known)}",
            allowed="the run folders of one study",
            fix="another --output",
        )


def write_config(told: SearchConfig) -> None:
    """Write config.yaml, without what the storage's URL hides."""
    content: dict[str, Any] = told.model_dump(mode="json", exclude_none=True)
    if told.storage is not None:
        content["storage"] = shown_url(told.storage)
    atomic_write_text(told.output / CONFIG, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


@contextmanager
def locked(path: Path, *, waiting: Callable[[], None] = lambda: None) -> Iterator[int]:
    """Hold the lock on a file, calling `waiting` where another process has it; yields the descriptor.

    A process that inherits the descriptor holds the lock too, until it ends, however it ends.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()
