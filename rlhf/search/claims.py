"""Which process has which trial: kernel locks, gone with the process that holds them, however it dies.

trials/.N.owner     held by the search that runs trial N
trials/.N.running   held by the trial's own process, which may outlive a search that was killed
trials/.proposing   held while a trial is taken or proposed
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Lock:
    """One lock; taken, it is held until it is released, or this process and those it was handed to are gone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def take(self, *, wait: bool = False) -> bool:
        """Take the lock if it is free; with `wait`, when it is free. Says whether it is ours now."""
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(file)
            return False
        self._file = file
        return True

    @property
    def file(self) -> int:
        """The descriptor to hand to a process that is to hold the lock too."""
        assert self._file is not None, f"{self.path} was not taken"
        return self._file

    def release(self) -> None:
        """Let go; a process that the lock was handed to still holds it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def owner_lock(trials: Path, number: int) -> Lock:
    """The lock of the search that runs a trial."""
    return Lock(trials / f".{number}.owner")


def running_lock(trials: Path, number: int) -> Lock:
    """The lock of a trial's own process."""
    return Lock(trials / f".{number}.running")


def forget(trials: Path, number: int) -> None:
    """Take away the locks of a trial that has ended: nobody will ask for them."""
    for lock in (owner_lock(trials, number), running_lock(trials, number)):
        lock.path.unlink(missing_ok=True)


@contextmanager
def proposing(trials: Path) -> Iterator[None]:
    """One process at a time: nobody else takes or proposes a trial meanwhile."""
    lock = Lock(trials / ".proposing")
    lock.take(wait=True)
    try:
        yield
    finally:
        lock.release()
