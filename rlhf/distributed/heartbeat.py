"""Heartbeats between the machines of a run: a machine that is off or cut off ends the run in minutes.

A collective cannot tell a slow machine from a lost one: nothing closes the connections to a machine without
power or network, and a collective's timeout is long, since other processes may be evaluating. One process of
each machine therefore writes a counter to the launcher's store and reads those of the others, in threads that
run while the main thread waits in a collective.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from rlhf.core.errors import RunError

PERIOD = 5.0
"""Seconds between two heartbeats."""
LOST_AFTER = 120.0
"""Seconds of silence after which a machine is lost."""
DONE = "done"
"""In place of a counter: the machine has finished."""


class Heartbeat:
    """The heartbeats of one machine.

    Args:
        store: shared by all machines, with `set`, `get` and `check`.
        machine: number of this machine.
        machines: how many there are.
        lost_after: seconds of silence.
        period: seconds between two calls of `exchange`, and between two of `silent`.
    """

    def __init__(
        self,
        store: Any,
        machine: int,
        machines: int,
        *,
        lost_after: float = LOST_AFTER,
        period: float = PERIOD,
    ) -> None:
        self._store, self._machine, self._period = store, machine, period
        self._limit = lost_after / period
        self._count, self._finished, self._lock = 0, False, threading.Lock()
        self._stopped = threading.Event()
        self._seen: dict[int, bytes] = {other: b"" for other in range(machines) if other != machine}
        # Periods, not seconds: if this machine itself was suspended, the others have not been silent.
        self._missed = dict.fromkeys(self._seen, 0)

    def exchange(self) -> None:
        """Write this machine's heartbeat and read those of the others."""
        with self._lock:
            self._count += 1
            self._store.set(_key(self._machine), DONE if self._finished else str(self._count))
            for other, before in self._seen.items():
                if self._store.check([_key(other)]) and (value := self._store.get(_key(other))) != before:
                    self._seen[other], self._missed[other] = value, 0

    def silent(self) -> list[int]:
        """Count a period, and return the machines that have been silent for too long."""
        for other in self._missed:
            self._missed[other] += self._seen[other] != DONE.encode()
        return [other for other, missed in self._missed.items() if missed >= self._limit]

    def finish(self) -> None:
        """Tell the others that this machine has finished."""
        self._finished = True
        self.exchange()

    def start(self, on_loss: Callable[[Sequence[int]], None]) -> None:
        """Run in two daemon threads: without a network a request to the store may not return.

        Args:
            on_loss: called with the lost machines.
        """

        def exchange() -> None:
            while not self._stopped.wait(self._period):
                with suppress(RuntimeError):  # no connection to the store: `silent` notices if it stays so
                    self.exchange()

        def watch() -> None:
            while not (lost := self.silent()):
                self._stopped.wait(self._period)
            self._stopped.set()
            on_loss(lost)

        for target in (exchange, watch):
            threading.Thread(target=target, daemon=True, name=f"heartbeat-{target.__name__}").start()


def machines() -> tuple[int, int]:
    """Number of this machine and how many there are, from the variables of torchrun and accelerate."""
    return int(os.environ.get("GROUP_RANK", "0")), int(os.environ.get("GROUP_WORLD_SIZE", "1"))


def start_between_machines() -> Heartbeat | None:
    """Start heartbeats in one process of each machine of a run on several; None elsewhere.

    Call it after the process group is initialised.
    """
    machine, count = machines()
    if count == 1 or os.environ.get("LOCAL_RANK", "0") != "0":
        return None
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    # A connection of its own: that of the process group may be blocked for minutes.
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    heartbeat = Heartbeat(store, machine, count)
    heartbeat.start(_end_run)
    return heartbeat


def lost_machines(lost: Sequence[int]) -> RunError:
    """The error for machines that do not answer."""
    _, count = machines()
    numbers = ", ".join(str(number) for number in lost)
    return RunError(
        f"No heartbeat from machine {numbers} (of {count}, counted from 0) for {LOST_AFTER:g} seconds: it is "
        "off, or cut off from the network.",
        fix="check it, then run the command again with --resume, on any number of machines",
    )


def _end_run(lost: Sequence[int]) -> None:
    """Print the error and end this process, whose main thread waits in a collective for ever."""
    print(f"\nError: {lost_machines(lost)}", file=sys.stderr, flush=True)
    os._exit(RunError.exit_code)


def _key(machine: int) -> str:
    return f"rlhf/heartbeat/{machine}"
