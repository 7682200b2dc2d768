"""What a run learns from, by content: a resumed run must learn from the same, wherever it lies by then.

`inputs.json` holds a digest for every config key that names data, a reward or a start. A key that moved to another path with
the same content passes; the same path with other content is refused. No torch.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from rlhf.core.errors import ConfigError
from rlhf.distributed import processes
from rlhf.runs.folder import INPUTS, RunFolder, leaves

WHOLE_UP_TO = 2**30
"""Bytes; of a larger file the size, and this share of it at either end, are hashed."""
ENDS = 2**24
PATHS = (
    *("start", "reward", "reward.*.adapter", "reward.*.classifier", "reward.*.function"),
    *("reward.*.ensemble.adapters.*", "held_out_reward", "held_out_reward.*"),
)
"""Config keys that may name a file or folder whose content a step depends on; data sources are hashed by their records."""


class Input(NamedTuple):
    """Something a run learns from: where it lies, and a digest of its content."""

    place: str
    digest: str


def path_inputs(config: Mapping[str, Any]) -> dict[str, Input]:
    """The files and folders that a config names under `PATHS`, by their dotted key."""
    found = {}
    for key, text in leaves(config):
        value = json.loads(text)
        if isinstance(value, str) and any(fnmatch.fnmatchcase(key, pattern) for pattern in PATHS):
            file, _, _ = value.rpartition(":")  # FILE.py:NAME
            path = next((p for p in (Path(value), Path(file)) if str(p) != "." and p.exists()), None)
            if path is not None:
                found[key] = Input(value, digest_of_path(path))
    return found


def inputs_of(config: BaseModel, digests: Mapping[str, str]) -> dict[str, Input]:
    """Data by a digest of its records, by config key, and the files and folders that a config names."""
    dumped = config.model_dump(mode="json")
    places = dict(leaves(dumped))
    records = {
        key: Input(json.loads(places[key]), digest) for key, digest in digests.items() if key in places
    }
    return records | path_inputs(dumped)


def digest_of_path(path: Path) -> str:
    """Hash a file, or the files of a folder with their names; Markdown (model cards) is ignored."""
    digest = hashlib.sha256()
    for file in sorted(_files(path)):
        digest.update(str(file.relative_to(path)).encode())
        _update(digest, file)
    return digest.hexdigest()[:16]


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    for file in path.rglob("*") if path.is_dir() else ():
        hidden = any(part.startswith((".", "__")) for part in file.relative_to(path).parts)
        if file.is_file() and not hidden and file.suffix != ".md":
            yield file


def _update(digest: Any, file: Path) -> None:
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= WHOLE_UP_TO:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
            return
        digest.update(str(size).encode() + stream.read(ENDS))
        stream.seek(-ENDS, 2)
        digest.update(stream.read())


def check_inputs(run: RunFolder, inputs: Mapping[str, Input]) -> None:
    """Record what a run learns from; where that was recorded before, make sure that it is the same.

    Raises:
        ConfigError: the content of an input changed since the run was started.
    """

    def check() -> None:
        recorded = {key: Input(*entry) for key, entry in read_inputs(run.path).items()}
        changed = [
            f"  {key}: {now.place}" + ("" if now.place == before.place else f" (then {before.place})")
            for key, now in inputs.items()
            if (before := recorded.get(key)) is not None and before.digest != now.digest
        ]
        if changed:
            raise ConfigError(
                "\n".join([f"{run.path} was started with other content than there is now in", *changed]),
                allowed="on --resume, the same content at any path",
                fix="put the content back as it was, or start anew with another --output",
            )
        run.write_json(INPUTS, {**recorded, **inputs})

    processes.on_main(check)


def read_inputs(path: Path) -> dict[str, Sequence[str]]:
    """The inputs a run folder recorded: by config key, place and digest; empty where there are none."""
    file = path / INPUTS
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
