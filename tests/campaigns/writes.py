"""A kill at every kind of file operation of a run: checkpoint, metrics.jsonl, final/, eval.json, the report.

    python tests/campaigns/writes.py --output runs/writes

An unbroken run records its file operations (opened for writing, renamed, removed, ...; see `faulty.py`). For
each kind of operation a run gets SIGKILL just before one operation of that kind, drawn at random, and is
resumed. Where a line is appended, a second run is killed after half of it. Each resumed run must equal the
unbroken one and leave no temporary name.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.campaigns.running import (
    Case,
    difference,
    prepare,
    run_to_end,
    start_run,
    state_of,
)

CASES = [Case("train-reward"), Case("align-policy", "none", "reinforce")]
APPENDED = ("open metrics.jsonl", "open samples.jsonl")


def killed(case: Case, folder: Path, fault: dict[str, Any], expected: dict[str, Any]) -> str:
    """Kill a run with this fault and resume it; returns what is wrong, or the empty string."""
    run = folder / "killed"
    shutil.rmtree(run, ignore_errors=True)
    log = folder / "killed.log"
    code = start_run(case, folder, run, log, resume=False, fault=fault).wait()
    if code != -signal.SIGKILL:
        return f"exit code {code} of the run to be killed"
    try:
        run_to_end(case, folder, run)
    except RuntimeError as error:
        return str(error)
    return difference(run, expected)


def campaign(case: Case, folder: Path, draw: random.Random, only: list[str]) -> list[dict[str, Any]]:
    """One kill for each kind of operation."""
    unbroken = folder / case.name.replace(" ", "-")
    operations = folder / f"{unbroken.name}.operations"
    run_to_end(case, folder, unbroken, {"record": str(operations)})
    expected, counts = state_of(unbroken), Counter(operations.read_text().splitlines())
    results = []
    for kind, count in counts.items():
        if only and not any(part in kind for part in only):
            continue
        fault = {"kill": kind, "at": draw.randint(1, count)}
        for torn in (False, True) if kind in APPENDED else (False,):
            wrong = killed(case, folder, {**fault, "torn": torn}, expected)
            results.append({"case": case.name, **fault, "of": count, "torn": torn, "wrong": wrong})
            print(
                f"{case.name}: {kind} {fault['at']}/{count}{' torn' * torn}: {wrong or 'equal'}", flush=True
            )
    return results


def main() -> None:
    """Run the campaign and write its result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--case", action="append", help="only cases whose name contains this")
    parser.add_argument("--only", action="append", default=[], help="only operations that contain this")
    options = parser.parse_args()
    folder, draw = options.output.absolute(), random.Random(options.seed)
    prepare(folder)
    cases = [case for case in CASES if not options.case or any(part in case.name for part in options.case)]
    results = [result for case in cases for result in campaign(case, folder, draw, options.only)]
    (folder / "writes.json").write_text(json.dumps(results, indent=1))
    wrong = [result for result in results if result["wrong"]]
    print(f"{len(results)} kills at file operations, {len(results) - len(wrong)} resumed runs equal")
    if wrong:
        raise SystemExit("NOT equal: " + json.dumps(wrong, indent=1))


if __name__ == "__main__":
    main()
