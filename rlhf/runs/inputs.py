"""The inputs of a run (data, rewards, start), compared by content on resume.

`inputs.json` holds a digest for every config key that names an input. On resume, the same content at another
path passes, and other content at the same path is refused. No torch.
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
from rlhf.core.hub import pushed_model
from rlhf.distributed import processes
from rlhf.runs.files import leaves
from rlhf.runs.folder import INPUTS, RunFolder

WHOLE_UP_TO = 2**30
"""Bytes; of a larger file only the size and both ends are hashed."""
ENDS = 2**24
"""Bytes hashed at each end of a large file."""
PATHS = (
    *("start", "reward", "reward.*.adapter", "reward.*.classifier", "reward.*.function"),
    "reward.*.principle",
    *("reward.*.ensemble.adapters.*", "held_out_reward", "held_out_reward.*"),
    "model.chat_template",
)
"""Config keys that may name a file or folder that results depend on; data is hashed by its records."""
CODE = "reward.*.function"
"""The user's code: a fault in it may be corrected in the middle of a run."""


class Input(NamedTuple):
    """The path of an input and the digest of its content."""

    path: str
    digest: str


def path_inputs(config: Mapping[str, Any]) -> dict[str, Input]:
    """The files, folders and models on the Hub that a config names under `PATHS`, by dotted key."""
    inputs = {}
    for key, text in leaves(config):
        value = json.loads(text)
        if isinstance(value, str) and _may_be_a_path(key):
            file, _, name = value.rpartition(":")  # FILE.py:NAME
            if Path(value).exists():
                inputs[key] = Input(value, digest_of_path(Path(value)))
            elif file and Path(file).exists():
                inputs[key] = Input(value, f"{digest_of_path(Path(file))}:{name}")
            elif pushed := pushed_model(value):
                inputs[key] = Input(value, digest_of_path(pushed))
    return inputs


def _may_be_a_path(key: str) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in PATHS)


def inputs_of(config: BaseModel, digests: Mapping[str, str]) -> dict[str, Input]:
    """All inputs by config key: data with the digests of its records, and files and folders."""
    dumped = config.model_dump(mode="json")
    values = dict(leaves(dumped))
    records = {
        key: Input(json.loads(values[key]), digest) for key, digest in digests.items() if key in values
    }
    return records | path_inputs(dumped)


def digest_of_path(path: Path) -> str:
    """Hash a file, or the names and content of a folder's files, except Markdown (model cards)."""
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
    """Record the inputs of a run; on resume, compare them with the recorded ones.

    Args:
        inputs: all but the base.

    Raises:
        ConfigError: the content of an input other than `CODE` has changed, or an input is no file or folder
            any more.
    """
    _check(run, inputs, whole=True)


def _name_of(function: Input) -> str:
    """NAME of FILE.py:NAME."""
    return function.path.rpartition(":")[2]


def check_base(run: RunFolder, base: str, fingerprint: str) -> None:
    """`check_inputs` of the base, whose weights are known only when it is loaded."""
    _check(run, {"model.base": Input(base, fingerprint)}, whole=False)


def _check(run: RunFolder, inputs: Mapping[str, Input], *, whole: bool) -> None:
    def check() -> None:
        recorded = {key: Input(*entry) for key, entry in read_inputs(run.path).items()}
        # `check_same_run` does not compare recorded keys. One that has no content now was changed.
        gone = [key for key in recorded if whole and key not in inputs and _may_be_a_path(key)]
        changed = [f"  {key}: no file or folder here (was {recorded[key].path})" for key in gone]
        for key, now in inputs.items():
            before = recorded.get(key)
            if before is None or before.digest == now.digest:
                continue
            if fnmatch.fnmatchcase(key, CODE) and _name_of(before) == _name_of(now):
                print(f"Note: {now.path} ({key}) has changed since the run was started.", flush=True)
                continue
            changed.append(
                f"  {key}: {now.path}" + ("" if now.path == before.path else f" (was {before.path})")
            )
        if changed:
            raise ConfigError(
                "\n".join([f"Inputs of {run.path} have changed since the run was started:", *changed]),
                allowed="with --resume, the same content at any path",
                fix="restore the content, or start a new run with another --output",
            )
        run.write_json(INPUTS, {**recorded, **inputs})

    processes.on_main(check)


def read_inputs(path: Path) -> dict[str, Sequence[str]]:
    """The recorded inputs of a run folder, (path, digest) by config key; empty if there are none."""
    file = path / INPUTS
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
