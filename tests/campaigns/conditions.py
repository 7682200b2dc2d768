"""A full disk, a read-only output, a clock that jumps, SIGINT and SIGTERM.

    python tests/campaigns/conditions.py --output runs/conditions

- Full disk (root, Linux): the run folder is a tmpfs with room for a part of the run, from none to all but the
  report. The run must end with code 1 (2 before training) and one message. With more room it is resumed and
  must equal the unbroken run.
- Read-only: a new run and a resumed one must be refused with code 2 and one message.
- Clock: one day ahead, then one year back, during the run; it must equal the unbroken run.
- SIGINT and SIGTERM at random moments: code 130 or 143, or 0 at the end; the message names --resume; nothing
  half-written or temporary is left; the resumed run must equal the unbroken one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.campaigns.running import (
    Case,
    difference,
    half_written,
    prepare,
    run_to_end,
    start_run,
    state_of,
)

CASES = [Case("train-reward"), Case("align-policy", "none", "reinforce")]
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143}
STOP_SECONDS = 120
"""Between a signal and the end, on a busy machine."""
SHARES = (0.05, 0.2, 0.4, 0.6, 0.8, 0.95)
"""Room on the disk, as a share of what the unbroken run needs."""


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Path]:
    """Mount a tmpfs of this size; needs root."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder], check=True)
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


def full_disk(case: Case, folder: Path, unbroken: Path) -> Iterator[dict[str, Any]]:
    """Fill the disk at several moments."""
    expected = state_of(unbroken)
    needed = sum(-(-file.stat().st_size // 4096) * 4 for file in unbroken.rglob("*") if file.is_file())
    for share in SHARES:
        disk, log = folder / "disk", folder / "full-disk.log"
        with small_disk(disk, max(64, int(share * needed))):
            code, text = ended(case, folder, disk / "run", log)
            wrong = "" if code in (1, 2) and "disk is full" in text.lower() else f"exit code {code}"
            wrong = wrong or "a stack trace" * has_trace(text) or ", ".join(half_written(disk))
            remount(disk, "size=64m")
            if not wrong:
                run_to_end(case, folder, disk / "run")
                wrong = difference(disk / "run", expected)
        yield {"what": "full disk", "case": case.name, "share": share, "exit": code, "wrong": wrong}


def read_only(case: Case, folder: Path, unbroken: Path) -> Iterator[dict[str, Any]]:
    """A folder that cannot be written, for a new run and a resumed one."""
    disk, log = folder / "disk", folder / "read-only.log"
    with small_disk(disk, 2**16):
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
    run, log, temporary = folder / "signalled", folder / "signalled.log", folder / "temporary"
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
    folder = options.output.absolute()
    prepare(folder)
    results = []
    for result in conditions(options, folder):
        results.append(result)
        print(json.dumps(result), flush=True)
    (folder / "conditions.json").write_text(json.dumps(results, indent=1))
    if wrong := [result for result in results if result.get("wrong")]:
        raise SystemExit("FAILED: " + json.dumps(wrong, indent=1))


if __name__ == "__main__":
    main()
