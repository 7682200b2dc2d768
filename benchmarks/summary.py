"""The table of targets and figures, in Markdown, from the files that the benchmarks wrote.

python benchmarks/summary.py runs/bench                          # to the screen
python benchmarks/summary.py runs/bench --into benchmarks/README.md
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tables import figure, target, verdict

from rlhf.runs.files import atomic_write_text

ORDER = ("products", "reward_training", "rounding", "policy_update", "policy_memory", "rollouts", "scaling")
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


def results(folder: Path) -> list[dict[str, Any]]:
    """Read the results of the benchmarks, in the order of the table."""
    files = {name: folder / f"{name}.json" for name in ORDER}
    runs = [json.loads(file.read_text("utf-8")) for file in files.values() if file.exists()]
    if not runs:
        sys.exit(f"{folder} holds no results: run `make bench` first")
    return runs


def markdown(runs: Iterable[Mapping[str, Any]]) -> str:
    """Format machine and date, then one row per figure."""
    runs = list(runs)
    first = runs[0]
    machine, environment = first["machine"], first["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    rows = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['memory_gib']:g} GiB; {environment['started'][:10]}; "
        f"base `{first['base']}` in {first['dtype']}, {first['data']} data; {versions}.",
        *(
            [
                "",
                "**Not a result**: small sizes (`--quick`), or processor time on a busy machine "
                "(`--clock processor`).",
            ]
            if any(run["quick"] or run["clock"] != "wall" for run in runs)
            else []
        ),
        "",
        "| | target | measured | |",
        "| --- | --- | --- | --- |",
    ]
    for run in runs:
        origin = run["environment"]
        revision = (origin["revision"] or "unknown")[:7]
        load = run["machine"]["load"]
        which = f"{origin['started'][:10]}, revision {revision}, load {load:g} at its end"
        rows.append(f"| **{run['name'].replace('_', ' ')}** ({which}) | | | |")
        rows += [
            f"| {row['what']} | {target(row)} | {figure(row)} | {verdict(row)} |" for row in run["lines"]
        ]
    missing = [name for name in ORDER if name not in {run["name"] for run in runs}]
    return "\n".join([*rows, *(["", f"Not run: {', '.join(missing)}."] if missing else [])]) + "\n"


def put_into(file: Path, text: str) -> None:
    """Replace the block between the two markers of a file."""
    whole = file.read_text("utf-8")
    if BEGIN not in whole or END not in whole:
        sys.exit(f"{file} lacks the lines {BEGIN} and {END}")
    before, rest = whole.split(BEGIN, 1)
    atomic_write_text(file, f"{before}{BEGIN}\n{text}{END}{rest.split(END, 1)[1]}")


def main() -> None:
    """Print the table, or put it into a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the results are")
    parser.add_argument("--into", type=Path, help="a file with the two markers")
    options = parser.parse_args()
    text = markdown(results(options.folder))
    if options.into is None:
        print(text, end="")
    else:
        put_into(options.into, text)


if __name__ == "__main__":
    main()
