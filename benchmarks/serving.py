"""Throughput of `rlhf serve-reward` with many clients, as a share of scoring the same conversations in one process.

    python benchmarks/serving.py runs/demo/reward/final                      # the demo's benchmark
    python benchmarks/serving.py runs/demo/reward/final pairs.jsonl --clients 64 --seconds 30

Both sides use the same model, one after the other on the same machine: first `Scorer.score` on all conversations, as
`rlhf score` does, then the server in a process of its own. Each client sends one conversation after another on one connection
until the time is over. Exit code 1 if a request failed, or if the ratio is below --least.
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
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx

from reward.scorer import Scorer
from rlhf.core.records import Conversation, Message
from rlhf.data.load import load_comparisons

BATCH = 256


def main() -> int:
    """Measure both sides and print the ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="the final/ folder of a reward run")
    parser.add_argument("file", nargs="?", default="demo", help="pairs with RewardBench's columns")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each side, at least")
    parser.add_argument("--least", type=float, default=0.8, help="lowest accepted ratio")
    told = parser.parse_args()
    conversations = conversations_of(told.file)
    alone = score_alone(told.model, conversations, told.seconds)
    served, errors = score_served(told.model, conversations, told.clients, told.seconds)
    ratio = served / alone
    print(f"scoring in one process: {alone:.1f} conversations/s")
    print(f"server, {told.clients} clients: {served:.1f} conversations/s, {errors} errors")
    print(f"ratio: {ratio:.2f} (at least {told.least:g})")
    return int(errors > 0 or ratio < told.least)


def conversations_of(path: str) -> list[Conversation]:
    """Both sides of every pair, those of one pair next to each other."""
    return [
        (*item.prompt, Message("assistant", text))
        for item in load_comparisons(path)[0]
        for text in (item.chosen, item.rejected)
    ]


def score_alone(model: str, conversations: Sequence[Conversation], seconds: float) -> float:
    """Conversations a second of the scorer alone."""
    scorer = Scorer.load(model)
    scorer.score(conversations[:8])  # warm up
    count, start = 0, time.perf_counter()
    for place in itertools.cycle(range(0, len(conversations), BATCH)):
        count += len(scorer.score(conversations[place : place + BATCH]))
        if (took := time.perf_counter() - start) >= seconds:
            break
    return count / took


def score_served(
    model: str, conversations: Sequence[Conversation], clients: int, seconds: float
) -> tuple[float, int]:
    """Conversations a second of the server, and how many requests failed."""
    token = secrets.token_hex(24)
    server = subprocess.Popen(
        [sys.executable, "-m", "rlhf.cli", "serve-reward", model, "--port", "0"],
        env=os.environ | {"RLHF_REWARD_TOKEN": token, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    try:
        url = re.findall(r"http://\S+:\d+", server.stdout.readline())[0]
        bodies = [
            {"conversations": [[{"role": m.role, "content": m.content} for m in one]]}
            for one in conversations
        ]
        following = itertools.cycle(bodies)
        start = time.perf_counter()

        def client(_: int) -> tuple[int, int]:
            answered = errors = 0
            headers = {"Authorization": f"Bearer {token}"}
            with httpx.Client(base_url=url, headers=headers, timeout=120, trust_env=False) as http:
                while time.perf_counter() - start < seconds:
                    try:
                        scores = http.post("/score", json=next(following)).raise_for_status().json()["scores"]
                        answered += "reward" in scores[0]
                    except httpx.HTTPError as error:
                        print(f"failed: {error!r}", file=sys.stderr)
                        errors += 1
            return answered, errors

        with ThreadPoolExecutor(clients) as pool:
            results = list(pool.map(client, range(clients)))
        took = time.perf_counter() - start
        return sum(answered for answered, _ in results) / took, sum(errors for _, errors in results)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


if __name__ == "__main__":
    sys.exit(main())
