"""Execute a notebook as a reader would, on a machine of any load."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode

IDLE_SHARE = 0.005
"""A kernel that uses less than this share of a core waits for something that does not come."""


class StuckError(Exception):
    """A notebook that was ended."""


def execute(
    notebook: NotebookNode,
    folder: Path,
    environment: dict[str, str],
    *,
    most_seconds: float = 900,
    idle_seconds: float = 180,
) -> None:
    """Execute all cells in place.

    Limits are in CPU time, not in time on the clock, since a busy machine may give a kernel a small share of
    a core.

    Args:
        most_seconds: CPU time of the kernel and its processes, for the whole notebook.
        idle_seconds: on the clock, in which the kernel uses at least `IDLE_SHARE` of a core.

    Raises:
        StuckError: the notebook was ended at one of the limits.
    """
    client = NotebookClient(
        notebook, timeout=None, startup_timeout=600, resources={"metadata": {"path": str(folder)}}
    )
    done, reasons = threading.Event(), list[str]()

    def watch() -> None:
        seen, since = 0.0, time.monotonic()
        while not done.wait(0.5):
            kernel = _kernel(client)
            if kernel is None:
                continue
            used = _cpu_seconds(kernel)
            if used - seen > IDLE_SHARE * idle_seconds:
                seen, since = used, time.monotonic()
            if used > most_seconds:
                reasons.append(f"more than {most_seconds:g} seconds of CPU time")
            elif time.monotonic() - since > idle_seconds:
                reasons.append(f"no work in {idle_seconds:g} seconds")
            if reasons:
                for process in (*kernel.children(recursive=True), kernel):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        client.execute(env=environment)
    except DeadKernelError as error:
        watcher.join(5)
        if reasons:
            raise StuckError(reasons[0]) from error
        raise
    finally:
        done.set()


def _kernel(client: NotebookClient) -> psutil.Process | None:
    """The kernel's process, once it runs."""
    provisioner: Any = getattr(client.km, "provisioner", None)
    pid = getattr(provisioner, "pid", None)
    with contextlib.suppress(psutil.NoSuchProcess):
        return None if not pid else psutil.Process(pid)
    return None


def _cpu_seconds(process: psutil.Process) -> float:
    """User and system time of a process and those it started, ended ones included."""
    total = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        total = sum(process.cpu_times()[:4])
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += sum(child.cpu_times()[:4])
    return total
