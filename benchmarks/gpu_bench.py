"""Reward training and policy update beside TRL on one GPU, same weights, each at its best micro-batch:
`make bench-gpu`.

    python benchmarks/gpu_bench.py --kind smol         # SmolLM2's shape
    python benchmarks/gpu_bench.py --kind 8b           # Llama-3.1-8B's shape, on 80 GB or more
    python benchmarks/gpu_bench.py --kind tiny         # tries the program itself, on a CPU

Random weights, and texts of HelpSteer2's lengths, both made here. Results: `reward_training-KIND.json` and
`policy_update-KIND.json`, with useful tokens/s, share of peak and memory added; the plan's figures are those
of `gpu_check.py`. They are written after every part: what is measured is kept where time runs out. Logs of
both sides are in `runs/gpu/logs`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gpu_models import SHAPES, make_base
from read_and_tokenise import make_files

ROWS = 8000
PARTS = {"reward_training": [], "policy_update": ["--engine", "transformers"]}
"""Benchmark: its further words."""


def main() -> None:
    """Run both; a failure of one is reported at the end."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=SHAPES, default="smol")
    parser.add_argument("--only", choices=PARTS, help="one of the two")
    parser.add_argument("--tokenizer", default="embedded", help="a folder with a tokenizer")
    parser.add_argument("--minutes", type=float, default=8.0, help="start no further part after so many")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/gpu"))
    parser.add_argument("--work", type=Path, default=Path("runs/gpu"))
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    base = make_base(options.kind, options.work / options.kind, options.tokenizer)
    data = options.work / "data"
    if not (data / "preference").exists():
        with tempfile.TemporaryDirectory(dir=options.work) as folder:  # complete, or not there
            make_files(Path(folder), ROWS)
            shutil.copytree(folder, data)
    failed = []
    parts = [options.only] if options.only else list(PARTS)
    for place, name in enumerate(parts):
        started = time.monotonic()
        left = (until - started) / 60 / (len(parts) - place)
        words = [
            *("--output", options.work, "--base", base, "--data", data, "--dtype", "bfloat16"),
            *("--minutes", max(0.0, left), "--result", options.output / f"{name}-{options.kind}.json"),
            *PARTS[name],
            *(["--quick"] if options.kind == "tiny" else []),
        ]
        script = Path(__file__).parent / f"{name}.py"
        done = subprocess.run(
            [sys.executable, str(script), *map(str, words)],
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
            check=False,
        )
        print(f"{name}: {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
        if done.returncode:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
