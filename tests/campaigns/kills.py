"""SIGKILL at random moments: every killed run, resumed, must equal the unbroken one.

    python tests/campaigns/kills.py --kills 50 --output runs/kills

A case is a command (train-reward, or align-policy with reinforce or ppo), the number format of the base
(bfloat16 or NF4) and one or two processes. Each case first runs unbroken, then again and again: killed after
a random time, resumed, killed again, until it ends. Of two processes sometimes only one is killed; the
launcher must then end the other. Two runs are equal if every figure in metrics.jsonl but times and memory,
the trained weights and the figures of eval.json are equal, and the report is complete. Models are tiny and
random, so that a run takes seconds. The result is a JSON file and a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.campaigns.running import (
    CASES,
    Case,
    Forked,
    descendants,
    difference,
    kill,
    kill_tree,
    prepare,
    run_to_end,
    start_run,
    state_of,
)

KILLS = 3
"""Kills of one run: each resumption repeats the start, and the run must end some time."""
LAUNCHER_SECONDS = 120
"""For the launcher to notice a dead worker and to end the others."""


def kill_something(case: Case, process: Forked | subprocess.Popen[bytes], draw: random.Random) -> None:
    """SIGKILL all processes of a run; of a launched one, half of the time one worker only."""
    workers = descendants(process) if case.processes > 1 else []
    if workers and draw.random() < 0.5:
        kill([draw.choice(workers)])
        try:
            process.wait(LAUNCHER_SECONDS)
        except subprocess.TimeoutExpired:
            kill_tree(process)
            raise RuntimeError(f"{case.name}: still there {LAUNCHER_SECONDS} s after a worker died") from None
    else:
        kill_tree(process)


def killed_run(
    case: Case, folder: Path, seconds: float, draw: random.Random, log: Path
) -> tuple[Path, int, float]:
    """A run that is killed at random moments and resumed until it ends; returns its folder, how often it was
    killed, and the seconds of its last part, for the next moments: the load of the machine changes."""
    run, kills = folder / "killed", 0
    shutil.rmtree(run, ignore_errors=True)
    while True:
        started = time.monotonic()
        process = start_run(case, folder, run, log)
        patience = draw.uniform(0.15, 1.0) * seconds if kills < KILLS else None
        try:
            code = process.wait(patience)
        except subprocess.TimeoutExpired:
            kill_something(case, process, draw)
            kills += 1
            continue
        if code != 0:
            raise RuntimeError(f"{case.name}: exit code {code} after {kills} kills; see {log}")
        return run, kills, min(seconds, time.monotonic() - started)


def campaign(case: Case, folder: Path, kills: int, draw: random.Random) -> dict[str, Any]:
    """Kill and compare until there were enough kills."""
    unbroken = folder / case.name.replace(" ", "-")
    started = time.monotonic()
    run_to_end(case, folder, unbroken)
    seconds, expected = time.monotonic() - started, state_of(unbroken)
    if expected["processes"] != case.processes:
        raise RuntimeError(f"{case.name}: {expected['processes']} processes were started")
    log = folder / f"{unbroken.name}-killed.log"
    result = {"case": case.name, "kills": 0, "runs": 0, "equal": 0, "different": []}
    while result["kills"] < kills:
        run, killed, seconds = killed_run(case, folder, seconds, draw, log)
        fault = difference(run, expected)
        result["runs"] += 1
        result["kills"] += killed
        result["equal"] += not fault
        result["different"] += [fault] if fault else []
        print(
            f"{case.name}: {result['kills']} kills, {result['equal']} of {result['runs']} runs equal",
            flush=True,
        )
    return result


def main() -> None:
    """Run the campaign and write its result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50, help="kills in all")
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--case", action="append", help="only cases whose name contains this")
    options = parser.parse_args()
    folder = options.output.absolute()
    prepare(folder)
    cases = [case for case in CASES if not options.case or any(part in case.name for part in options.case)]
    draw, weight = random.Random(options.seed), sum(1 / case.processes for case in cases)
    results = [
        campaign(case, folder, math.ceil(options.kills / weight / case.processes), draw) for case in cases
    ]
    (folder / "kills.json").write_text(json.dumps(results, indent=1))
    print("\n| case | kills | resumed runs | equal to the unbroken run |\n| --- | ---: | ---: | ---: |")
    for result in results:
        print(f"| {result['case']} | {result['kills']} | {result['runs']} | {result['equal']} |")
    if any(result["different"] for result in results):
        raise SystemExit("NOT equal: " + json.dumps([r for r in results if r["different"]], indent=1))


if __name__ == "__main__":
    main()
