"""One run in several processes, started by `accelerate launch` or `torchrun`: rank, shards, collectives.

Every process runs the same command. Only the main process writes files and prints to the terminal. When a
process fails, the launcher stops the others. torch is imported only if there is more than one process.
"""

from __future__ import annotations

import io
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO, TypeVar

from rlhf.core.errors import ConfigError, RlhfError, RunError
from rlhf.distributed import heartbeat

T = TypeVar("T")

TIMEOUT = timedelta(hours=2)
"""Timeout of a collective: other processes may be evaluating."""
MAIN_ERROR_GRACE = 5.0
"""Seconds for the main process to print an error that all processes raise, and for the launcher to stop the
others."""
DESTROY_PAUSE = 0.5
"""Seconds for gloo's threads to release the tensors of the last collective; they need milliseconds."""

_heartbeats: list[heartbeat.Heartbeat | None] = []  # of this process, once it is in a group
_replaced: list[TextIO] = []  # a stream without references closes its file descriptor


def rank() -> int:
    """The rank of this process; 0 is the main one."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """The number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is rank 0, the process that writes files and prints."""
    return rank() == 0


def silence_other_ranks() -> None:
    """Discard the output of the other ranks until the run folder, with a log per rank, exists."""
    if not is_main():
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (open until exit)


def log_other_ranks(folder: Path) -> None:
    """Redirect stdout of ranks above 0 to `FOLDER/rank-N.log`.

    Their stderr goes there and to the terminal.
    """
    if is_main():
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"rank-{rank()}.log"
    log = file.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
    _replaced.append(sys.stdout)
    sys.stdout = log
    sys.stderr = _Tee(sys.stderr, log)


class _Tee(io.TextIOBase):
    """A text stream that writes to two others."""

    def __init__(self, first: TextIO, second: TextIO) -> None:
        self._streams = (first, second)

    def write(self, text: str) -> int:
        for stream in self._streams:
            stream.write(text)
        return len(text)

    def flush(self) -> None:
        for stream in self._streams:
            stream.flush()

    def fileno(self) -> int:
        return self._streams[0].fileno()


def wait_for_main() -> None:
    """Wait before printing an error.

    The main process prints first, and its exit makes the launcher stop the others.
    """
    if not is_main():
        time.sleep(MAIN_ERROR_GRACE)


def init() -> None:
    """Initialise the process group; call it before the collectives below.

    Raises:
        ConfigError: the launch file sets DeepSpeed options that are not supported.
    """
    if world_size() == 1:
        return
    from accelerate import PartialState

    from rlhf.distributed import zero

    if zero.is_requested():
        zero.prepare()
    cpu, backend = device_and_backend()
    _require_gpus()
    PartialState(cpu=cpu, backend=backend, timeout=TIMEOUT)
    if not _heartbeats:
        _heartbeats.append(heartbeat.start_between_machines())


def _require_gpus() -> None:
    """Require one GPU per process on a machine that has GPUs.

    Raises:
        ConfigError: this machine has more processes than GPUs.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    if gpus and local_processes > gpus:
        raise ConfigError(
            f"{local_processes} processes on this machine, which has {gpus} GPU{'s' if gpus > 1 else ''}.",
            allowed="one process for each GPU (CUDA_VISIBLE_DEVICES hides some)",
            fix=f"accelerate launch --num_processes {gpus}",
        )


def destroy() -> None:
    """Destroy the process group, after a command has succeeded and as the last call of the program.

    gloo's threads release the tensors of a collective shortly after it. If Python is finalising by then, the
    process aborts (`std::terminate`, Python before 3.14), and the launcher reports a finished run as failed.
    Destroying the group does not wait for these threads if DistributedDataParallel still holds them: hence
    the pause. Do not call it after a failure: it would wait for collectives that never complete.
    """
    if world_size() == 1:
        return
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        for beat in filter(None, _heartbeats):
            beat.finish()
        distributed.destroy_process_group()
        time.sleep(DESTROY_PAUSE)


def device_and_backend() -> tuple[bool, str | None]:
    """accelerate's `cpu` argument, and the backend if accelerate would choose the wrong one.

    With `cpu=True` accelerate ignores DeepSpeed; without a backend it treats each CPU process as the only
    process.
    """
    import torch

    from rlhf.distributed import zero

    if torch.cuda.is_available():
        return False, None
    return (False, "gloo") if world_size() > 1 and zero.is_requested() else (True, None)


def per_rank(total: int, key: str) -> int:
    """This process's share of a config key that counts over all processes.

    Raises:
        ConfigError: it is not a multiple of the number of processes.
    """
    ranks = world_size()
    if total % ranks:
        more = -(-total // ranks) * ranks
        raise ConfigError(
            f"{key} is {total} over all processes, and there are {ranks} processes.",
            allowed=f"a multiple of {ranks}",
            fix=f"{key}={more}, or launch another number of processes",
        )
    return total // ranks


def shard(rows: Sequence[T]) -> Sequence[T]:
    """Every n-th row, starting at this process's rank; n is the number of processes."""
    return rows[rank() :: world_size()]


def unshard(shards: Sequence[Sequence[T]]) -> list[T]:
    """The rows in their original order, from the shard of each rank; the inverse of `shard`."""
    rows: list[Any] = [None] * sum(map(len, shards))
    for index, rows_of_rank in enumerate(shards):
        rows[index :: len(shards)] = rows_of_rank
    return rows


def all_gather(value: T) -> list[T]:
    """The value of every process, ordered by rank, in all processes."""
    if world_size() == 1:
        return [value]
    from accelerate.utils import gather_object

    return list(gather_object([value]))


def wait_for_all() -> float:
    """Wait until all processes are here; returns the seconds waited, 0 in one process."""
    if world_size() == 1:
        return 0.0
    arrived = time.perf_counter()
    all_gather(None)
    return time.perf_counter() - arrived


def gather_results(work: Callable[[], T]) -> list[T]:
    """Call `work` in every process and gather the results.

    An RlhfError raised in any process is raised in all.
    """
    result, failure = None, None
    try:
        result = work()
    except RlhfError as error:
        failure = error
    gathered = all_gather((result, failure))
    for _, error_of_rank in gathered:
        if error_of_rank is not None:
            raise error_of_rank
    return [value for value, _ in gathered]  # type: ignore[misc]


def broadcast_from_main(value: T) -> T:
    """The main process's value, in all processes."""
    if world_size() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]  # type: ignore[no-any-return]


def lost_process(error: BaseException) -> RunError | None:
    """The error to show if a collective failed because another process has ended; None for any other error.

    Neither gloo nor NCCL has a class for it: gloo's message names its source file, NCCL's its error code.
    """
    if world_size() == 1 or not re.search(r"gloo/transport/|ncclRemoteError", str(error)):
        return None
    reason = re.sub(r"^\[\S+\] ", "", str(error)).split(". ")[0]
    return RunError(
        f"Another process of this run has ended or cannot be reached ({reason}). Its own output says why: on "
        "its machine, and in logs/rank-N.log of the run folder.",
        fix="fix the cause, then run the command again with --resume, with any number of processes",
    )


def on_main(work: Callable[[], T]) -> T | None:
    """Call `work` in the main process while the others wait; an error is raised in all of them."""
    result: T | None = None
    failure: Exception | None = None
    if is_main():
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - broadcast to the waiting processes, and raised below
            failure = error
    if world_size() > 1 and failure is not None and not isinstance(failure, RlhfError):
        broadcast_from_main(RunError(f"The main process failed: {type(failure).__name__}: {failure}"))
        raise failure
    if failure := broadcast_from_main(failure):
        raise failure
    return result


def from_main(work: Callable[[], T]) -> T:
    """As `on_main`, with the result, which must be picklable, in all processes."""
    return broadcast_from_main(on_main(work))  # type: ignore[return-value]
