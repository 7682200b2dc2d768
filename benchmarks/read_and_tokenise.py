"""Seconds and memory that `rlhf train-reward` takes from a file of HelpSteer2's size to token ids.

    python benchmarks/read_and_tokenise.py                  # 20,000 rated responses, the embedded tokenizer
    python benchmarks/read_and_tokenise.py --preferences    # and 10,000 preferences on the same responses,
        joined

The rows are made up of slices of Python's own documentation, in HelpSteer2's schema and proportions: two
responses a prompt, means of 713 and 1,493 characters, 29 % of the prompts of several turns. The measured
process is a fresh one: imports count, in its seconds and in its memory.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROWS, RESPONSES = 20_000, 2
PROMPT, RESPONSE = 713, 1493  # mean characters
SEVERAL_TURNS = 0.29
SPREAD = 0.7  # of the logarithm of a length
ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
MOST_SECONDS, MOST_GIB = 60.0, 1.0


def make_files(folder: Path, rows: int) -> None:
    """`train.jsonl.gz` and `preference/preference.jsonl.gz`, as nvidia/HelpSteer2 has them."""
    (folder / "preference").mkdir()
    with (
        gzip.open(folder / "train.jsonl.gz", "wt", compresslevel=1) as ratings,
        gzip.open(folder / "preference" / "preference.jsonl.gz", "wt", compresslevel=1) as preferences,
    ):
        for prompt, responses, chance in made_up(rows // RESPONSES):
            for response in responses:
                row = {name: chance.randrange(5) for name in ATTRIBUTES}
                ratings.write(json.dumps({"prompt": prompt, "response": response, **row}) + "\n")
            pair = dict(zip(("response_1", "response_2"), responses, strict=True))
            strength = chance.choice((-3, -2, -1, 1, 2, 3))
            row = {"split": "train", "prompt": prompt, **pair, "preference_strength": strength}
            preferences.write(json.dumps(row) + "\n")


def made_up(prompts: int) -> Iterator[tuple[str, list[str], random.Random]]:
    """Prompts and their responses, the same every time."""
    from pydoc_data.topics import topics

    text, chance = "\n".join(topics.values()), random.Random(0)

    def some(mean: float) -> str:
        length = max(20, round(mean * chance.lognormvariate(-(SPREAD**2) / 2, SPREAD)))
        start = chance.randrange(len(text) - length)
        return text[start : start + length]

    for _ in range(prompts):
        turns = 3 if chance.random() < SEVERAL_TURNS else 1
        marks = ("\n<extra_id_1>Assistant\n", "\n<extra_id_1>User\n")
        # A prompt of several turns is longer; the mean over all prompts stays.
        mean = PROMPT / (1 - SEVERAL_TURNS + 3 * SEVERAL_TURNS)
        prompt = "".join((marks[turn % 2 - 1] if turn else "") + some(mean) for turn in range(turns))
        yield prompt, [some(RESPONSE) for _ in range(RESPONSES)], chance


def measure(folder: Path, preferences: bool) -> dict[str, Any]:
    """Load the files as train-reward does, in this process."""
    started = time.perf_counter()
    from reward.training.data import load_chat, load_data
    from rlhf.config.reward import RewardConfig

    data: dict[str, Any] = {"ratings": [{"path": str(folder), "format": "helpsteer2"}]}
    stage = {"name": "regression", "regression_weight": 1}
    if preferences:
        data["preferences"] = [{"path": str(folder), "format": "helpsteer2-preference"}]
        stage["preference_weight"] = 1
    config = RewardConfig.model_validate(
        {"output": "unused", "model": {"max_length": 8192}, "data": data, "stages": [stage]}
    )
    chat = load_chat(config)
    ready = time.perf_counter()
    loaded = load_data(config, chat)
    items = loaded.training + loaded.validation
    return {
        "rows": loaded.drops.read,
        "dropped": loaded.drops.reasons.total(),
        "items": len(items),
        "tokens": sum(item.tree.useful_tokens for item in items),
        "seconds": time.perf_counter() - started,
        "seconds_imports": ready - started,
        "seconds_processor": time.process_time(),
        "peak_gib": peak_gib(),
    }


def peak_gib() -> float:
    """Most memory this process has held. Not `getrusage`: that also remembers the process it was forked
    from."""
    status = Path("/proc/self/status").read_text("ascii")
    (kib,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(kib) / 2**20


def main() -> None:
    """Make the files, measure in a fresh process, print, and fail where a bound is passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--preferences", action="store_true")
    parser.add_argument("--measure", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.preferences)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_files(Path(folder), arguments.rows)
        command = [sys.executable, __file__, "--measure", folder]
        command += ["--preferences"] if arguments.preferences else []
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    seconds, gib = figures["seconds"], figures["peak_gib"]
    print(
        f"{figures['rows']:,} rows to {figures['items']:,} items of {figures['tokens']:,} tokens: "
        f"{seconds:.1f} s ({figures['seconds_imports']:.1f} s of them imports; "
        f"{figures['seconds_processor']:.1f} s of processor time, which tells more than the clock on a "
        f"busy machine), {gib:.2f} GiB at most"
    )
    bounds = {"s": (seconds, MOST_SECONDS * arguments.rows / ROWS), "GiB": (gib, MOST_GIB)}
    for unit, (value, most) in bounds.items():
        if not math.isfinite(value) or value > most:
            sys.exit(f"{value:.2f} {unit} is more than {most:g} {unit}")


if __name__ == "__main__":
    main()
