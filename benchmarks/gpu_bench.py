"""Reward training and policy update beside TRL on one GPU, same weights, each at its best micro-batch:
`make bench-gpu`.

    python benchmarks/gpu_bench.py --kind smol         # SmolLM2's shape
    python benchmarks/gpu_bench.py --kind 8b           # Llama-3.1-8B's shape, on 80 GB or more
    python benchmarks/gpu_bench.py --kind tiny --quick # tries the program itself, on a CPU

Random weights, and texts of HelpSteer2's lengths, both made here. Results: `reward_training-KIND.json` and
`policy_update-KIND.json`, with useful tokens/s, share of peak and peak memory; the plan's figures are those
of `gpu_check.py`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
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
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tokenizer", default="embedded", help="a folder with a tokenizer")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/gpu"))
    parser.add_argument("--work", type=Path, default=Path("runs/gpu"))
    options = parser.parse_args()
    base = make_base(options.kind, options.work / options.kind, options.tokenizer)
    data = options.work / "data"
    if not data.exists():
        data.mkdir(parents=True)
        make_files(data, ROWS)
    here, failed = Path(__file__).parent, []
    options.output.mkdir(parents=True, exist_ok=True)
    for name in [options.only] if options.only else PARTS:
        words = [
            "--output",
            str(options.work),
            "--base",
            str(base),
            "--data",
            str(data),
            "--dtype",
            "bfloat16",
        ]
        started = time.monotonic()
        done = subprocess.run(
            [
                sys.executable,
                str(here / f"{name}.py"),
                *words,
                *PARTS[name],
                *(["--quick"] if options.quick else []),
            ],
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
            check=False,
        )
        print(f"{name}: {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
        if done.returncode:
            failed.append(name)
        else:
            (options.work / f"{name}.json").replace(options.output / f"{name}-{options.kind}.json")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
