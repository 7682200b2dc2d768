"""The command line `rlhf` with a fault in it.

    python tests/campaigns/faulty.py FAULT train-reward CONFIG --output RUN

FAULT is JSON: `folder` is the run folder, and one of

    record: FILE             append each file operation in the folder to FILE
    kill: OPERATION, at: N   SIGKILL before the N-th operation of this kind
    torn: true               with `kill`, at an append: half a line is written first
    clock: [[S, JUMP], ...]  S seconds after the start the wall clock is JUMP seconds off

An operation is what Python's audit hooks report, with the path in the run folder: "open metrics.jsonl",
"os.rename checkpoints/step-N". Numbers and the random part of temporary names are left out.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree")
WRITES = os.O_WRONLY | os.O_RDWR
TORN = b'{"step": 3, "loss/to'


def kind_of(event: str, arguments: tuple[Any, ...], folder: str) -> str:
    """The kind of a file operation that changes the folder; else the empty string."""
    if event not in OPERATIONS or not isinstance(arguments[0], str | os.PathLike):
        return ""
    if event == "open" and not (set(arguments[1] or "") & set("wax+") or arguments[2] & WRITES):
        return ""
    path = os.fspath(arguments[1] if event == "os.rename" else arguments[0])
    if not isinstance(path, str) or not path.startswith(folder + "/"):
        return ""
    name = re.sub(r"\.[0-9a-f]{8}\.", ".X.", path[len(folder) + 1 :])
    return f"{event} {re.sub(r'[0-9]+', 'N', name)}"


def watch_files(fault: Mapping[str, Any]) -> None:
    """Record the file operations in the folder, or die before one of them."""
    counts: Counter[str] = Counter()
    process, inside = os.getpid(), False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal inside
        if inside or os.getpid() != process or not (kind := kind_of(event, arguments, fault["folder"])):
            return
        inside = True
        counts[kind] += 1
        if "record" in fault:
            with Path(fault["record"]).open("a") as file:
                file.write(kind + "\n")
        elif kind == fault["kill"] and counts[kind] == fault["at"]:
            if fault.get("torn"):
                with Path(arguments[0]).open("ab") as file:
                    file.write(TORN)
            os.kill(process, signal.SIGKILL)
        inside = False

    sys.addaudithook(hook)


def move_clock(jumps: list[list[float]]) -> None:
    """Make `time.time` jump."""
    clock, started = time.time, time.monotonic()

    def moved() -> float:
        elapsed = time.monotonic() - started
        return clock() + sum(jump for after, jump in jumps if elapsed >= after)

    time.time = moved
    time.time_ns = lambda: int(1e9 * moved())


def install(fault: Mapping[str, Any]) -> None:
    """Install a fault in this process."""
    if "clock" in fault:
        move_clock(fault["clock"])
    elif os.environ.get("RANK", "0") == "0":
        watch_files(fault)


def main() -> None:
    """Install the fault and run the command."""
    install(json.loads(sys.argv.pop(1)))
    from rlhf import cli

    cli.main()


if __name__ == "__main__":
    main()
