"""Stands in for `rlhf train-reward CONFIG key=value ... --output DIR [--resume]`: a run in a tenth of a
second.

The value is 1 - |log10(learning_rate) + 3|, best at 1e-3; one metrics row an update approaches it. A file
`hold-N` beside the config keeps trial N waiting after its first row. `benchmark` says how it should go wrong.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import sys
import time
from pathlib import Path

words = sys.argv[sys.argv.index("train-reward") + 1 :]
config, output = Path(words[0]), Path(words[words.index("--output") + 1])
overrides = dict(word.split("=", 1) for word in words if "=" in word)
rate = float(overrides["stages.0.optimizer.learning_rate"])
updates = int(overrides.get("stages.0.max_steps", "4"))
value = 1 - abs(math.log10(rate) + 3)
output.mkdir(parents=True, exist_ok=True)
lock = (output / ".lock").open("w")  # held until the process ends, as a run folder's is
fcntl.flock(lock, fcntl.LOCK_EX)
with (output / "starts").open("a") as starts:
    starts.write(
        json.dumps({"resume": "--resume" in words, "learning_rate": rate, "pid": os.getpid()}) + "\n"
    )
print(f"trial at {rate:g}")
if overrides.get("benchmark") == "refuse":
    print("Error: row 3 is empty", file=sys.stderr)
    sys.exit(2)
if overrides.get("benchmark") == "crash":
    print("out of luck", file=sys.stderr)
    sys.exit(1)
with (output / "metrics.jsonl").open("w") as metrics:
    for step in range(1, updates + 1):
        metrics.write(json.dumps({"step": step, "validation/accuracy": value * step / updates}) + "\n")
        metrics.flush()
        if step == 1:
            while (config.parent / f"hold-{output.name}").exists():
                time.sleep(0.02)
        if step == 3 and overrides.get("benchmark") == f"hang at {rate:g}":
            time.sleep(60)
evaluation = {
    "overall": value,
    "intervals": {"overall": [value - 0.1, value + 0.1]},
    "held_out": {"overall": value / 2},
    "negative": -value,
}
(output / "eval.json").write_text(json.dumps(evaluation))
