"""The demo's reward model while another program takes one core: does it end, and is the time left right?

    python tests/campaigns/busy.py --output runs/busy

The other program is a loop that starts after a quarter of the updates and stops at the end. Every progress
line states a time left; the true one is the time from that line to the last update's. The result is the
share of lines, from the third update after the change of load, that are right within a third.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.campaigns.running import ROOT, VARIABLES

LINE = re.compile(r"update (\d+)/(\d+) .*time left (?:(\d+):)?(\d+):(\d+)")
LAST = re.compile(r"update (\d+)/\1 ")
SHORTER = ("head_start=0", "benchmark=null", "validate_every=1000", "data.validation_share=0.02")
"""Without what is before and after the updates, whose progress has lines of its own."""
SHARE = 1 / 3
AFTER = 3
"""Updates that show a change of speed, see `rlhf.runs.progress`."""


def estimates(lines: Sequence[tuple[float, str]]) -> list[tuple[int, float, float]]:
    """(update, stated, true) seconds left of each line, from lines with their times.

    The line of the last update, which has the time of the end, must be among them.
    """
    end = next(at for at, line in lines if LAST.search(line))
    rows = []
    for at, line in lines:
        if (match := LINE.search(line)) and match[1] != match[2]:
            stated = 3600 * int(match[3] or 0) + 60 * int(match[4]) + int(match[5])
            rows.append((int(match[1]), float(stated), end - at))
    return rows


def within(stated: float, true: float) -> bool:
    """Whether a stated time is right within a third, or a second."""
    return abs(stated - true) <= max(1.0, SHARE * true)


def run(output: Path, updates: int) -> tuple[int, list[tuple[float, str]], int]:
    """Run the demo; returns its exit code, its lines with their times, and the update at which load began."""
    words = [
        "train-reward",
        "configs/reward/demo.yaml",
        f"stages.0.max_steps={updates}",
        *SHORTER,
        "--output",
        str(output),
    ]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "rlhf", *words],
        stderr=subprocess.STDOUT,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": VARIABLES["PYTHONPATH"], "HF_HUB_OFFLINE": "1"},
    )
    assert process.stdout is not None
    lines, loaded, other = [], 0, None
    try:
        for line in process.stdout:
            lines.append((time.monotonic(), line))
            match = re.search(r"update (\d+)/\d+ ", line)
            if match and other is None and int(match[1]) >= updates // 4:
                loaded = int(match[1])
                other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    finally:
        if other is not None:
            other.kill()
    return process.wait(), lines, loaded


def main() -> None:
    """Run and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--updates", type=int, default=24)
    options = parser.parse_args()
    options.output.mkdir(parents=True)
    load = os.getloadavg()[0]
    started = time.monotonic()
    code, lines, loaded = run(options.output.absolute() / "run", options.updates)
    if code != 0:
        raise SystemExit(f"exit code {code}\n" + "".join(line for _, line in lines[-20:]))
    shown = estimates(lines)
    late = [(stated, true) for update, stated, true in shown if update >= loaded + AFTER]
    right = sum(within(stated, true) for stated, true in late)
    result = {
        "load average before": load,
        "cores": os.cpu_count(),
        "seconds": round(time.monotonic() - started),
        "other program from update": loaded,
        "lines": len(late),
        "right within a third": right,
        "all": shown,
    }
    (options.output / "busy.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
