"""Shared by the benchmarks: one process per side, alternating rounds, medians, results on disk.

A side is one of the compared implementations. It runs in its own process, so that peak memory and libraries
are separate. It is started once and answers requests one at a time, so that rounds alternate.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tables import show

from rlhf.core.formats import effective_dtype
from rlhf.runs.environment import environment
from rlhf.runs.files import atomic_write_text

Handler = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Answers one request of a side: JSON in, JSON out."""

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


def wall_clock() -> float:
    """Seconds, once the GPU has finished what is queued: without that the clock shows when kernels were
    launched."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


CLOCKS: Mapping[str, Callable[[], float]] = {"wall": wall_clock, "processor": time.process_time}


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """Parser of the options that all benchmarks share."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output", type=Path, default=Path("runs/bench"), help="folder of the JSON results")
    parser.add_argument("--quick", action="store_true", help="small sizes: a look, not a result")
    parser.add_argument("--base", default="embedded", help="the base model")
    parser.add_argument(
        "--data", type=Path, help="folder of real pairs and prompts; else what this project makes"
    )
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="`processor` counts this process's own time: on a busy machine, with OMP_NUM_THREADS=1",
    )
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default=effective_dtype("bfloat16"),
        help="number format of both sides; bfloat16, or float32 where the processor is slow in that",
    )
    parser.add_argument("--minutes", type=float, help="start no further part after so many minutes")
    parser.add_argument("--result", type=Path, help="the JSON file, by default OUTPUT/NAME.json")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the options; the folder of real data is used if it exists."""
    options = parser.parse_args()
    if options.data is None and SHARED_DATA.is_dir():
        options.data = SHARED_DATA
    options.until = math.inf if options.minutes is None else time.monotonic() + 60 * options.minutes
    return options


class Side:
    """One side of a comparison, in a process of its own.

    Args:
        script: the benchmark, which is run again as this side.
        name: of the side, in the script's table of sides.
        options: passed to the side before its first request.
        folder: of its log file.
    """

    def __init__(self, script: str, name: str, options: Mapping[str, Any], folder: Path) -> None:
        self.name = name
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / f"{Path(script).stem}-{name}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, script, "--side", name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.ready = self.ask(**options)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for the answer; `resident` and `peak` are the process's bytes."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self.process.wait()
            tail = "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-15:])
            sys.exit(f"the side {self.name} ended with code {code}; the end of {self.log}:\n{tail}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def serve(side: Callable[[Mapping[str, Any]], Handler]) -> None:
    """Run as a side: read its options, prepare, and answer requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to stderr, not between the answers
    handle = side(json.loads(sys.stdin.readline()))
    print(json.dumps(memory()), file=answers, flush=True)
    for line in sys.stdin:
        answer = without_memory_errors(handle, json.loads(line))
        print(json.dumps({**answer, **memory()}), file=answers, flush=True)
        release()
    answers.close()
    sys.stdout.flush()
    os._exit(0)  # engines with their own threads do not always end


def without_memory_errors(handle: Handler, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """The answer, or endless seconds where the GPU's memory does not suffice for this setting."""
    try:
        return handle(request)
    except Exception as error:
        if type(error).__name__ not in MEMORY_ERRORS:
            raise
        return {"seconds": math.inf, "error": str(error).splitlines()[0]}


MEMORY_ERRORS = ("OutOfMemoryError", "GpuMemoryError")


def release() -> None:
    """Give cached memory of the GPU back where it is much: the other side computes on the same GPU."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return
    if torch.cuda.memory_reserved() > 0.25 * torch.cuda.get_device_properties(0).total_memory:
        gc.collect()
        torch.cuda.empty_cache()


def on_gpu() -> bool:
    """Whether the sides compute on a GPU, where sizes that suit a CPU would measure launches alone."""
    import torch

    return torch.cuda.is_available()


def memory() -> dict[str, int]:
    """Bytes this process holds now, and held at most since `forget_peak`: of the GPU where there is one,
    with what its allocator reserved."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return {
            "resident": torch.cuda.memory_allocated(),
            "peak": torch.cuda.max_memory_allocated(),
            "reserved": torch.cuda.max_memory_reserved(),
        }
    fields = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line
    )
    return {name: int(fields[key].split()[0]) * 1024 for name, key in MEMORY.items()}


MEMORY = {"resident": "VmRSS", "peak": "VmHWM"}


def forget_peak() -> None:
    """Count the peak from here on."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    Path("/proc/self/clear_refs").write_text("5")


def timed(trainer: Any, clock: str) -> dict[str, Any]:
    """Train; seconds from the first batch to the last step, and the most memory above that at the start."""
    from transformers import TrainerCallback

    now, seconds = CLOCKS[clock], {"begin": 0.0, "end": 0.0}

    class Stopwatch(TrainerCallback):  # type: ignore[misc,unused-ignore]
        def on_train_begin(self, *_: object, **__: object) -> None:
            seconds["begin"] = now()

        def on_step_end(self, *_: object, **__: object) -> None:
            seconds["end"] = now()

    stopwatch = Stopwatch()
    trainer.add_callback(stopwatch)
    forget_peak()
    before = memory()["resident"]
    trainer.train()
    trainer.remove_callback(stopwatch)
    return {"seconds": seconds["end"] - seconds["begin"], "added": memory()["peak"] - before}


def fastest(
    ask: Callable[[int], dict[str, Any]],
    settings: Sequence[int],
    *,
    largest: Callable[[int], dict[str, Any]] | None = None,
) -> tuple[int, dict[int, dict[str, Any]]]:
    """The setting whose answer took the fewest seconds, and the answers of all that fit in memory.

    A first request, which is not counted, warms up.

    Args:
        largest: asks for the largest piece of work, which must fit too.
    """
    ask(settings[0])
    answers = {setting: answer for setting in settings if math.isfinite((answer := ask(setting))["seconds"])}
    for setting in sorted(answers, key=lambda setting: float(answers[setting]["seconds"])):
        if largest is None or math.isfinite(largest(setting)["seconds"]):
            return setting, answers
    sys.exit(f"the GPU's memory does not suffice for any of {', '.join(map(str, settings))}")


def in_turns(
    sides: Mapping[str, Callable[[], float]], rounds: int, *, until: float = math.inf
) -> dict[str, list[float]]:
    """Each side's figure in each round; the order of the sides alternates.

    Args:
        until: no round starts later on `time.monotonic`, except the first.
    """
    figures: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        if number and time.monotonic() > until:
            print(f"  {number} of {rounds} rounds: no time for more", flush=True)
            break
        names = list(sides) if number % 2 == 0 else list(sides)[::-1]
        for name in names:
            figures[name].append(sides[name]())
            print(f"  round {number + 1} of {rounds}, {name}: {figures[name][-1]:,.2f}", flush=True)
    return figures


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """The median over the rounds of the ratio of two sides in the same round."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def line(
    what: str,
    measured: float | None,
    unit: str = "",
    *,
    least: float | None = None,
    most: float | None = None,
    note: str = "",
) -> dict[str, Any]:
    """One figure; `least` or `most` is its target, None for both is for information, `measured` None was
    not measured."""
    return {"what": what, "measured": measured, "unit": unit, "least": least, "most": most, "note": note}


def matmul_peak(clock: str, dtype: str, seconds: float = 0.5) -> float:
    """GFLOP/s of the fastest of some large matrix products in `dtype` on this machine, or its GPU, now.

    With `processor` it is that of one thread's time.
    """
    import torch
    from torch.nn.functional import linear

    best = 0.0
    now = CLOCKS[clock]
    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    for size in (8192, 16_384) if on_gpu else (1024, 2048):
        a, b = (torch.randn(size, size, dtype=getattr(torch, dtype), device=device) for _ in range(2))
        linear(a, b)  # as a layer multiplies
        started, count = now(), 0
        while now() - started < seconds:
            for _ in range(10 if on_gpu else 1):  # or the clock would wait for each
                linear(a, b)
                count += 1
        best = max(best, count * 2 * size**3 / (now() - started) / 1e9)
    return best


def write_result(
    options: argparse.Namespace, name: str, lines: Sequence[Mapping[str, Any]], details: Mapping[str, Any]
) -> None:
    """Print the figures, and write them to a file."""
    show(name, lines)
    write_file(options, name, lines, details)


def write_file(
    options: argparse.Namespace, name: str, lines: Sequence[Mapping[str, Any]], details: Mapping[str, Any]
) -> None:
    """Write the figures with machine, versions and date under the output folder."""
    result = {
        "name": name,
        "quick": options.quick,
        "clock": options.clock,
        "dtype": options.dtype,
        "base": options.base,
        "data": "real" if options.data else "synthetic",
        "machine": machine(),
        "environment": environment(" ".join(["python", *sys.argv])),
        "lines": list(lines),
        "details": dict(details),
    }
    file = options.result or options.output / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(file, json.dumps(result, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """The processor, its cores and memory, threads, how busy the machine is, and the GPU where there is
    one."""
    import torch

    model = "unknown"
    for row in Path("/proc/cpuinfo").read_text().splitlines():
        if row.startswith("model name"):
            model = row.split(":", 1)[1].strip()
    total = int(Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0]) * 1024
    gpu: dict[str, Any] = {}
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        gpu = {
            "gpu": device.name,
            "gpu_gib": round(device.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
        }
    return gpu | {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gib": round(total / 2**30, 1),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
    }
