"""Reward training and policy update beside TRL on one GPU, same weights, each at its best micro-batch:
`make bench-gpu`.

    python benchmarks/gpu_bench.py --kind smol         # SmolLM2's shape
    python benchmarks/gpu_bench.py --kind 8b           # Llama-3.1-8B's shape, on 80 GB or more
    python benchmarks/gpu_bench.py --kind smol 8b      # both, as far as the time suffices
    python benchmarks/gpu_bench.py --kind tiny         # tries the program itself, on a CPU

Random weights, and texts of HelpSteer2's lengths, both made here; both sides have the allocator of a run.
Results: `reward_training-KIND.json` and `policy_update-KIND.json`, with useful tokens/s, share of peak, peak
memory, and what `rlhf plan` predicts. They are written after every part: what is measured is kept where time
runs out. Logs of both sides are in `runs/gpu/logs`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_models import SHAPES, make_base
from read_and_tokenise import make_files

from rlhf.startup import ALLOCATOR

ROWS = 8000
PARTS = {"reward_training": [], "policy_update": ["--engine", "transformers"]}
"""Benchmark: its further words."""


def main() -> None:
    """Run both for each kind of base; a failure, or what no time was left for, is reported at the end."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", nargs="+", choices=SHAPES, default=["smol"])
    parser.add_argument("--only", choices=PARTS, help="one of the two")
    parser.add_argument("--tokenizer", default="embedded", help="a folder with a tokenizer")
    parser.add_argument("--minutes", type=float, default=8.0, help="start no further part after so many")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/gpu"))
    parser.add_argument("--work", type=Path, default=Path("runs/gpu"))
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    bases = {kind: make_base(kind, options.work / kind, options.tokenizer) for kind in options.kind}
    data = options.work / "data"
    if not (data / "preference").exists():
        with tempfile.TemporaryDirectory(dir=options.work) as folder:  # complete, or not there
            make_files(Path(folder), ROWS)
            shutil.copytree(folder, data)
    failed, left_out = [], []
    names = [options.only] if options.only else list(PARTS)
    parts = [(name, kind) for name in names for kind in bases]
    for place, (name, kind) in enumerate(parts):
        started = time.monotonic()
        if place and started > until:
            left_out.append(f"{name} {kind}")
            continue
        left = (until - started) / 60 / (len(parts) - place)
        words = [
            *("--output", options.work, "--base", bases[kind], "--data", data, "--dtype", "bfloat16"),
            *("--minutes", max(0.0, left), "--result", options.output / f"{name}-{kind}.json"),
            *PARTS[name],
            *(["--quick"] if kind == "tiny" else []),
        ]
        script = Path(__file__).parent / f"{name}.py"
        done = subprocess.run(
            [sys.executable, str(script), *map(str, words)],
            env={**ALLOCATOR, **os.environ, "TOKENIZERS_PARALLELISM": "false"},
            check=False,
        )
        print(f"{name} {kind}: {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
        if done.returncode:
            failed.append(f"{name} {kind}")
    done_now = [part for part in parts if " ".join(part) not in (*failed, *left_out)]
    files = [options.output / f"{name}-{kind}.json" for name, kind in done_now]
    if row := status_row([json.loads(file.read_text("utf-8")) for file in files if file.exists()]):
        print(f"For the status table of README.md:\n{row}", flush=True)
    if left_out:
        print(f"No time was left for {', '.join(left_out)}: name one by --kind and --only.", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def status_row(results: Sequence[Mapping[str, Any]]) -> str:
    """A row with GPU, date, figures beside TRL's and command; empty without results."""
    if not results:
        return ""
    figures = [
        f"{Path(result['base']).name}: {line['what']} {line['measured']:.2g}{line['unit']}"
        for result in results
        for line in result["lines"]
        if "beside TRL" in line["what"] and line["measured"] is not None
    ]
    first = results[0]
    device = first["machine"].get("gpu", first["machine"]["processor"])
    command = " ".join(["python", *sys.argv])
    return f"| {device} | {first['environment']['started'][:10]}: {'; '.join(figures)} (`{command}`) |"


if __name__ == "__main__":
    main()
