"""All benchmarks one after another, and the table of targets against figures: `make bench`.

    python benchmarks/bench.py
    python benchmarks/bench.py --quick      # small sizes: whether everything runs

The first takes an hour on 2 idle cores with fast bfloat16 products, and more than two without. Run it on an
idle machine. A benchmark that fails is named at the end; the others still run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import summary
from measuring import arguments, parse


def main() -> None:
    """Run them, print the table."""
    options = parse(arguments(__doc__))
    here = Path(__file__).parent
    # Threads are as a user has them: one that waits spins for a moment only, and the side whose turn it is
    # not is asleep by then.
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    words = [
        "--output",
        str(options.output),
        "--base",
        options.base,
        "--clock",
        options.clock,
        "--dtype",
        options.dtype,
    ]
    words += ["--quick"] if options.quick else []
    words += ["--data", str(options.data)] if options.data else []
    failed = []
    for name in summary.ORDER:
        (options.output / f"{name}.json").unlink(missing_ok=True)  # not an older one in its place
        print(f"{name} ...", flush=True)
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, str(here / f"{name}.py"), *words], env=environment, check=False
        )
        print(f"{name}: {(time.monotonic() - started) / 60:.1f} minutes\n", flush=True)
        if done.returncode:
            failed.append(name)
    print(summary.markdown(summary.results(options.output)))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
