"""The run folder: config, environment, metrics and results of a run; files are written atomically or by line.

Its files: config.yaml, environment.json, inputs.json, metrics.jsonl, samples.jsonl (of a policy),
checkpoints/, final/, logs/
"""

from __future__ import annotations

import fcntl
import fnmatch
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from pydantic import BaseModel, ValidationError

from rlhf.core.errors import ConfigError, OutputError, UserError
from rlhf.distributed import processes
from rlhf.runs.disk import report_space_of
from rlhf.runs.environment import environment
from rlhf.runs.files import HALF_WRITTEN, append_lines, as_json, atomic_write_text, differences, keep_lines

LOCK, CONFIG, ENVIRONMENT = ".lock", "config.yaml", "environment.json"
LOGS = "logs"
"""The folder of the output of ranks above 0."""
METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"
INPUTS = "inputs.json"
"""Path and digest of each input by config key, see `rlhf.runs.inputs`."""

MAY_CHANGE = (
    *("output", "steps", "stages.*.max_steps", "stages.*.epochs", "save_every", "threads"),
    *("max_steps", "epochs", "evaluation_pairs"),
    *("track", "track.*"),
    # These change the use of GPU memory: results agree up to rounding.
    *("tokens_per_batch", "micro_batch_size"),
    *("rollouts.gpu_memory_share", "rollouts.max_num_batched_tokens", "rollouts.sleep"),
    *("rollouts.servers*", "rollouts.token_env", "rollouts.adapter_folder", "rollouts.timeout"),
    # How long a server is waited for, not what it answers.
    *("*reward.*timeout", "*reward.*token_env", "*reward.*judge.concurrency", "*reward.*judge.retries"),
    "*reward.*judge.dollars_per_million*",
    # An answer without a reward ends a run; this setting lets it continue.
    "reward_shaping.missing",
)
"""Config keys that may change on resume: length and place of a run, not what a step computes."""


class RunFolder:
    """The folder of one run, locked by the main process of the run; other ranks write nothing.

    Attributes:
        path: the folder.
        checkpoints: the folder of checkpoints.
        final: the folder of the result.
        resumed: whether it contains an earlier part of the run.
    """

    def __init__(self, path: Path, lock: int | None, *, resumed: bool) -> None:
        self.path, self.resumed = path, resumed
        self.checkpoints, self.final = path / "checkpoints", path / "final"
        self.writes, self._lock = lock is not None, lock
        os.register_at_fork(after_in_child=self._forget_lock)  # or an orphaned worker would keep the lock

    @classmethod
    def create(cls, path: Path, config: BaseModel, *, resume: bool, command: str) -> RunFolder:
        """Create a run folder, or open an existing one with `resume`.

        Raises:
            OutputError: the folder is in use, is not empty without `resume`, or is not a run folder.
            ConfigError: on resume, a config key differs that may not change.
        """
        processes.init()
        run = processes.on_main(lambda: cls._create(path, config, resume=resume, command=command))
        resumed = processes.broadcast_from_main(run is not None and run.resumed)
        processes.log_other_ranks(path / LOGS)
        return run or cls(path, None, resumed=resumed)

    @classmethod
    def _create(cls, path: Path, config: BaseModel, *, resume: bool, command: str) -> RunFolder:
        check_is_run_folder(path, resume=resume)
        run = cls(path, _acquire(path), resumed=resume and occupied(path))
        report_space_of(path)
        try:
            if occupied(path) and not resume:
                raise _not_empty(path)
            if resume and not run.resumed:
                print(no_run_note(path))
            run._open(config, command)
        except BaseException:
            run.close()
            raise
        return run

    def _open(self, config: BaseModel, command: str) -> None:
        _clear_half_written(self.path)
        dumped, facts = config.model_dump(mode="json"), environment(command) | {"resumed": []}
        if self.resumed:
            check_same_run(self.path / CONFIG, config, dumped)
            for name in (METRICS, SAMPLES):
                keep_lines(self.path / name, math.inf)
            if (self.path / ENVIRONMENT).exists():
                first = self.read_json(ENVIRONMENT)
                facts.pop("resumed")
                facts = first | {"resumed": [*first["resumed"], facts]}
        atomic_write_text(self.path / CONFIG, yaml.safe_dump(dumped, sort_keys=False, allow_unicode=True))
        self.write_json(ENVIRONMENT, facts)
        self.checkpoints.mkdir(exist_ok=True)

    def metrics(self, step: int, values: Mapping[str, float | str]) -> None:
        """Append the metrics of a step to metrics.jsonl; non-finite values become null."""
        if not self.writes:
            return
        plain = {
            name: value if isinstance(value, int | str) else float(value) for name, value in values.items()
        }
        append_lines(self.path / METRICS, [{"step": step, **plain}])

    def samples(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows, each with a `step`, to samples.jsonl."""
        if self.writes:
            append_lines(self.path / SAMPLES, [{"step": row["step"], **row} for row in rows])

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file of this run atomically; non-finite numbers become null."""
        if self.writes:
            atomic_write_text(self.path / name, as_json(content, indent=2) + "\n")

    def read_json(self, name: str) -> Any:
        """Read a JSON file of this run.

        Raises:
            OutputError: it does not exist, or is not JSON.
        """
        file = self.path / name
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise OutputError(f"{self.path} has no {name}") from None
        except ValueError as error:
            raise OutputError(f"{file} is not JSON: {error}") from None

    def truncate(self, after_step: int) -> None:
        """Remove metrics and samples of later steps, which a resumed run writes again.

        Raises:
            OutputError: a line other than the last is corrupt.
        """
        for name in (METRICS, SAMPLES) if self.writes else ():
            keep_lines(self.path / name, after_step)

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            self._forget_lock()

    def _forget_lock(self) -> None:
        """Close the lock file; the lock stays while another process has it open."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After a user error before the first update the folder is emptied, ready for the corrected config.
        user_error = kind is not None and issubclass(kind, UserError) and not self.resumed
        if self.writes and user_error and not (self.path / METRICS).exists():
            for entry in self.path.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        self.close()


def occupied(path: Path) -> bool:
    """Whether a folder contains anything except the lock and unfinished files."""
    return any(entry.name != LOCK and not entry.name.endswith(HALF_WRITTEN) for entry in path.iterdir())


def no_run_note(path: Path) -> str:
    """The note on `--resume` of a folder without a run, as in the first attempt of a batch job."""
    return f"Note: {path} holds no run to resume: a new run starts."


def _not_empty(path: Path) -> OutputError:
    return OutputError(
        f"the output folder {path} is not empty",
        allowed="a new or an empty folder",
        fix="--resume, to continue the run in it, or another --output",
    )


def check_is_run_folder(path: Path, *, resume: bool, config: str = CONFIG) -> None:
    """Create a folder, or check that it is empty or has a config, before anything is written into it.

    Raises:
        OutputError: it has other files, or is not writable.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        is_run = (path / config).exists()
        has_files = occupied(path)
    except OSError as error:
        message = f"{path} cannot be an output folder: {error.strerror}"
        raise OutputError(message, allowed="a writable folder", fix="another --output") from None
    if has_files and not is_run:
        if not resume:
            raise _not_empty(path)
        raise OutputError(
            f"{path} is not a run folder: it contains files, but no {config}", fix="another --output"
        )


def _acquire(path: Path) -> int:
    """Lock the folder until the returned file is closed, or the process dies."""
    try:
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        message = f"{path} cannot be an output folder: {error.strerror}"
        raise OutputError(message, allowed="a writable folder", fix="another --output") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        process = os.read(lock, 20).decode() or "unknown"
        os.close(lock)
        raise OutputError(
            f"the output folder {path} is in use by another run (process {process})",
            fix="wait for it to end, then use --resume; or another --output",
        ) from None
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    return lock


def in_use(path: Path) -> bool:
    """Whether a process holds a run folder."""
    try:
        lock = os.open(path / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _clear_half_written(path: Path) -> None:
    """Remove unfinished files of a killed run."""
    for folder in (path, path / "checkpoints"):
        for remainder in folder.glob(f".*{HALF_WRITTEN}"):
            if remainder.is_dir():
                shutil.rmtree(remainder)
            else:
                remainder.unlink()


def check_same_run(file: Path, config: BaseModel, dumped: Mapping[str, Any]) -> None:
    """Raise a ConfigError if a config key differs from the run's that may not change."""
    try:
        stored = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{file} is not valid YAML: {error}",
            fix="restore the file as the run wrote it, or start a new run with another --output",
        ) from None
    with suppress(ValidationError):  # keys newer than the run get their defaults
        stored = type(config).model_validate(stored).model_dump(mode="json")
    # Inputs may have moved: `check_inputs` compares their content.
    by_content = (
        json.loads(inputs.read_text(encoding="utf-8")) if (inputs := file.with_name(INPUTS)).exists() else {}
    )
    changed = [
        line
        for key, line in differences(stored, dumped).items()
        if key not in by_content and not any(fnmatch.fnmatchcase(key, pattern) for pattern in MAY_CHANGE)
    ]
    if changed:
        raise ConfigError(
            "\n".join([f"{file.parent} contains a run with another config:", *changed]),
            allowed=f"on --resume only {', '.join(MAY_CHANGE)} may differ",
            fix=f"resume with {file} as the config, or start a new run with another --output",
        )
