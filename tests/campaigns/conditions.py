"""A full disk, a read-only output, a clock that jumps, SIGINT and SIGTERM.

    python tests/campaigns/conditions.py --output runs/conditions

- Full disk (root, Linux): the run folder is a tmpfs that is filled at several moments. The run must end with
  code 1, one message and nothing half-written. With room again it is resumed and must equal the unbroken run.
- Read-only: a new run and a resumed one must be refused with code 2 and one message.
- Clock: one day ahead, then one year back, during the run; it must equal the unbroken run.
- SIGINT and SIGTERM at random moments: code 130 or 143, or 0 at the end; the message names --resume; nothing
  half-written or temporary is left; the resumed run must equal the unbroken one.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from rlhf.runs.signals import end_cleanly_on_sigterm
from tests.campaigns.running import (
    Case,
    difference,
    half_written,
    prepare,
    run_to_end,
    start_run,
    state_of,
    write_results,
)

CASES = [Case("train-reward"), Case("align-policy", "none", "reinforce")]
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143}
STOP_SECONDS = 120
"""Between a signal and the end, on a busy machine."""
FULL = ((0, 0), (0, 200), (2, 0), (2, 150), (4, 300), (6, 0), (6, 60))
"""Moments at which the disk becomes full: after so many updates, with room for so many KiB."""
DISK_MIB = 400
"""A run does not start with less than 256 MiB."""


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a small tmpfs; needs root."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def remount(folder: Path, options: str) -> None:
    """Change the options of a mount."""
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def has_trace(text: str) -> bool:
    """Whether a user sees a stack trace."""
    return "Traceback (most recent call last)" in text


def ended(case: Case, folder: Path, run: Path, log: Path, **more: Any) -> tuple[int, str]:
    """Exit code and output of a run."""
    log.unlink(missing_ok=True)
    code = start_run(case, folder, run, log, **more).wait()
    return code, log.read_text(errors="replace")


def fill(disk: Path, room: int) -> Path:
    """Fill a disk up to `room` KiB; returns the file to remove."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(2**20))
    with filler.open("r+b") as file:
        file.truncate(max(0, filler.stat().st_size - 1024 * room))
    return filler


def full_disk(case: Case, folder: Path, unbroken: Path) -> Iterator[dict[str, Any]]:
    """Fill the disk at several moments."""
    expected = state_of(unbroken)
    for updates, room in FULL:
        disk, log = folder / "disk", folder / f"full-disk-{case.command}-{updates}-{room}.log"
        with small_disk(disk):
            run = disk / "run"
            log.unlink(missing_ok=True)
            process = start_run(case, folder, run, log)
            while process.poll() is None and not has_updates(run, updates):
                time.sleep(0.01)
            filler = fill(disk, room)
            code, text = process.wait(), log.read_text(errors="replace")
            wrong = "" if code == 1 and "disk is full" in text.lower() else f"exit code {code}; see {log}"
            wrong = wrong or "a stack trace" * has_trace(text) or ", ".join(half_written(disk))
            filler.unlink()
            if not wrong:
                run_to_end(case, folder, run)
                wrong = difference(run, expected)
        yield {
            "what": "full disk",
            "case": case.name,
            "after updates": updates,
            "room": room,
            "exit": code,
            "wrong": wrong,
        }


def has_updates(run: Path, count: int) -> bool:
    """Whether a run has logged so many updates; for 0, whether its folder is complete."""
    if not count:
        return (run / "checkpoints").exists()
    file = run / "metrics.jsonl"
    return file.exists() and file.read_bytes().count(b"optimizer/lr") >= count


def read_only(case: Case, folder: Path, unbroken: Path) -> Iterator[dict[str, Any]]:
    """A folder that cannot be written, for a new run and a resumed one."""
    disk, log = folder / "disk", folder / "read-only.log"
    with small_disk(disk):
        shutil.copytree(unbroken, disk / "old")
        remount(disk, "ro")
        for name in ("new", "old"):
            code, text = ended(case, folder, disk / name, log)
            wrong = "" if code == 2 and not has_trace(text) else f"exit code {code}; see {log}"
            yield {"what": "read-only", "case": case.name, "run": name, "exit": code, "wrong": wrong}


def clock(case: Case, folder: Path, unbroken: Path) -> Iterator[dict[str, Any]]:
    """The wall clock jumps twice."""
    started = time.monotonic()
    ended(case, folder, folder / "timed", folder / "timed.log")
    seconds = time.monotonic() - started
    fault = {"clock": [[0.3 * seconds, 86400.0], [0.6 * seconds, -366 * 86400.0]]}
    code, _ = ended(case, folder, folder / "clock", folder / "clock.log", fault=fault)
    wrong = f"exit code {code}" if code else difference(folder / "clock", state_of(unbroken))
    yield {"what": "clock", "case": case.name, "exit": code, "wrong": wrong}
    for name in ("clock", "timed"):
        shutil.rmtree(folder / name)


def signals(
    case: Case, folder: Path, unbroken: Path, draw: random.Random, times: int
) -> Iterator[dict[str, Any]]:
    """Each signal at random moments."""
    expected = state_of(unbroken)
    started = time.monotonic()
    run_to_end(case, folder, folder / "timed")
    seconds = time.monotonic() - started
    shutil.rmtree(folder / "timed")
    for number in [*SIGNALS] * times:
        after = draw.uniform(0.1, 1.0) * seconds
        yield {
            "what": number.name,
            "case": case.name,
            "after": round(after / seconds, 2),
            **signalled(case, folder, number, after, expected),
        }


def signalled(
    case: Case, folder: Path, number: signal.Signals, after: float, expected: dict[str, Any]
) -> dict[str, Any]:
    """Signal a run after some seconds and resume it."""
    run, temporary = folder / "signalled", folder / "temporary"
    log = folder / f"{number.name}-{case.command}-{after:.2f}.log"
    for old in (run, temporary):
        shutil.rmtree(old, ignore_errors=True)
    temporary.mkdir()
    log.unlink(missing_ok=True)
    os.environ["TMPDIR"] = str(temporary)
    process = start_run(case, folder, run, log)
    del os.environ["TMPDIR"]
    time.sleep(after)
    process.send_signal(number)
    sent = time.monotonic()
    try:
        code = process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return {"wrong": f"still there after {STOP_SECONDS} seconds"}
    text, left = log.read_text(errors="replace"), [path.name for path in temporary.iterdir()]
    result = {"exit": code, "seconds": round(time.monotonic() - sent, 1), "saved": "which is saved" in text}
    wrong = "" if code in (0, SIGNALS[number]) else f"exit code {code}"
    wrong = (
        wrong or "a stack trace" * has_trace(text) or "no --resume" * (bool(code) and "--resume" not in text)
    )
    wrong = wrong or (f"left in TMPDIR: {left}" if left else "")
    if not wrong and run.exists():
        wrong = ", ".join(half_written(run))
        if code:
            run_to_end(case, folder, run)
        wrong = wrong or difference(run, expected)
    return {**result, "wrong": wrong}


def conditions(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """All of them, for each case."""
    draw = random.Random(options.seed)
    for case in CASES:
        unbroken = folder / case.name.replace(" ", "-")
        run_to_end(case, folder, unbroken)
        if sys.platform == "linux" and os.geteuid() == 0:
            yield from full_disk(case, folder, unbroken)
            yield from read_only(case, folder, unbroken)
        else:
            yield {"what": "full disk, read-only", "case": case.name, "skipped": "needs root on Linux"}
        yield from clock(case, folder, unbroken)
        yield from signals(case, folder, unbroken, draw, options.signals)


def main() -> None:
    """Run the campaign and write its result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--signals", type=int, default=6, help="of each kind and case")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    end_cleanly_on_sigterm()  # and unmount
    folder = options.output.absolute()
    prepare(folder)
    write_results(conditions(options, folder), folder / "conditions.json")


if __name__ == "__main__":
    main()
