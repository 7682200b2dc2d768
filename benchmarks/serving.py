"""Throughput of `rlhf serve-reward` with many clients, as a share of scoring the same file in one process.

    python benchmarks/serving.py runs/demo/reward/final                      # the demo's benchmark
    python benchmarks/serving.py runs/demo/reward/final pairs.jsonl --clients 64 --conversations 2000

Both sides score the same conversations with the same model, one side after the other: `Scorer.score` in
this process, as `rlhf score` does, then the server in a process of its own. Each client sends one
conversation at a time, on one connection, until all are scored. The ratio is given by the clock and by
processor time; on a machine with other work only the second one means something (set OMP_NUM_THREADS=1).
Exit code 1 if a request failed or that ratio is below --least.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil

from reward.scorer import Scorer
from rlhf.core.records import Conversation, Message
from rlhf.data.comparisons import load_comparisons

BATCH = 256


def main() -> int:
    """Measure both sides and print the ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="the final/ folder of a reward run")
    parser.add_argument("file", nargs="?", default="demo", help="pairs with RewardBench's columns")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument(
        "--conversations", type=int, default=512, help="how many, the file repeated as needed"
    )
    parser.add_argument("--least", type=float, default=0.8, help="lowest accepted ratio of throughputs")
    options = parser.parse_args()
    pairs = load_comparisons(options.file)[0]
    sides = [
        (*pair.prompt, Message("assistant", text)) for pair in pairs for text in (pair.chosen, pair.rejected)
    ]
    conversations = list(itertools.islice(itertools.cycle(sides), options.conversations))
    alone = score_in_process(options.model, conversations)
    served, errors = score_by_server(options.model, conversations, options.clients)
    count = len(conversations)
    for name, (wall, processor) in (("one process", alone), (f"server, {options.clients} clients", served)):
        print(
            f"{name}: {count / wall:.1f} conversations/s, {count / processor:.1f} per second of "
            f"processor time"
        )
    by_wall, by_processor = (first / second for first, second in zip(alone, served, strict=True))
    print(
        f"ratio: {by_wall:.2f} by the clock, {by_processor:.2f} by processor time; {errors} failed requests"
    )
    return int(errors > 0 or by_processor < options.least)


def timed(work: Callable[[], object], process: psutil.Process) -> tuple[float, float]:
    """Seconds by the clock and of a process's processor time."""

    def used() -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    start, before = time.perf_counter(), used()
    work()
    return time.perf_counter() - start, used() - before


def score_in_process(model: str, conversations: Sequence[Conversation]) -> tuple[float, float]:
    """Seconds to score all conversations by the scorer alone."""
    scorer = Scorer.load(model)
    scorer.score(conversations[:8])  # warm up

    def work() -> None:
        for start in range(0, len(conversations), BATCH):
            scorer.score(conversations[start : start + BATCH])

    return timed(work, psutil.Process())


def score_by_server(
    model: str, conversations: Sequence[Conversation], clients: int
) -> tuple[tuple[float, float], int]:
    """Seconds to score all conversations through the server, and how many requests failed."""
    token = secrets.token_hex(24)
    server = subprocess.Popen(
        [sys.executable, "-m", "rlhf.cli", "serve-reward", model, "--port", "0"],
        env=os.environ | {"RLHF_REWARD_TOKEN": token, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    bodies = [
        {"conversations": [[{"role": m.role, "content": m.content} for m in conversation]]}
        for conversation in conversations
    ]
    remaining, lock = iter(bodies), threading.Lock()

    def client(http: httpx.Client) -> int:
        errors = 0
        while True:
            with lock:
                body = next(remaining, None)
            if body is None:
                return errors
            try:
                answer = http.post("/score", json=body).raise_for_status().json()
                errors += "reward" not in answer["scores"][0]
            except httpx.HTTPError as error:
                print(f"failed: {error!r}", file=sys.stderr)
                errors += 1

    try:
        url = re.findall(r"http://\S+:\d+", server.stdout.readline())[0]
        headers = {"Authorization": f"Bearer {token}"}
        with ThreadPoolExecutor(clients) as pool:
            https = [
                httpx.Client(base_url=url, headers=headers, timeout=600, trust_env=False)
                for _ in range(clients)
            ]
            https[0].post("/score", json={"conversations": bodies[0]["conversations"] * 8}).raise_for_status()
            errors: list[int] = []
            times = timed(lambda: errors.extend(pool.map(client, https)), psutil.Process(server.pid))
        return times, sum(errors)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


if __name__ == "__main__":
    sys.exit(main())
