"""Many small matrix products on as many threads as there are cores, while another program takes one core:
how threads wait.

    python benchmarks/busy_machine.py

The other program is a loop that this one starts. Each way of waiting runs in a process of its own, the ways
take turns, and the figure is the median over the rounds of seconds a product beside those of OpenMP's own
waiting in the same round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

WAYS: dict[str, dict[str, str]] = {
    "OpenMP's own waiting": {},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
WORK = """
import time, torch
torch.manual_seed(0)
rows, weight = torch.randn(64, 576), torch.randn(576, 576)
for _ in range(20):
    rows @ weight
count, started = 0, time.perf_counter()
while time.perf_counter() - started < {seconds}:
    for _ in range(20):
        (rows @ weight).relu_()
    count += 20
print((time.perf_counter() - started) / count, (rows @ weight).double().sum().item())
"""


def product_seconds(way: dict[str, str], seconds: float) -> tuple[float, float]:
    """Seconds a product, and a checksum of it."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    words = [sys.executable, "-c", WORK.format(seconds=seconds)]
    done = subprocess.run(words, env=env | way, capture_output=True, text=True, check=True)
    seconds_per_product, checksum = map(float, done.stdout.split())
    return seconds_per_product, checksum


def rounds(count: int, seconds: float, *, busy: bool) -> dict[str, list[float]]:
    """Seconds a product of each way, round by round."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        taken: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(count):
            checksums = set()
            for name, way in WAYS.items():
                seconds_per_product, checksum = product_seconds(way, seconds)
                taken[name].append(seconds_per_product)
                if name != "one thread":
                    checksums.add(checksum)
            assert len(checksums) == 1, "waiting must not change a number"
        return taken
    finally:
        if other is not None:
            other.kill()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each way in each round")
    options = parser.parse_args()
    reference = next(iter(WAYS))
    for busy in (False, True):
        taken = rounds(options.rounds, options.seconds, busy=busy)
        state = "one core taken" if busy else "as the machine is"
        for name, values in taken.items():
            ratio = statistics.median(o / v for o, v in zip(taken[reference], values, strict=True))
            print(
                f"{state}: {name}: {1e6 * statistics.median(values):,.0f} us a product, {ratio:.2f} x as fast"
            )


if __name__ == "__main__":
    main()
