"""Reward training beside TRL's RewardTrainer: useful tokens a second, loss and memory, on the same pairs in
the same updates.

    python benchmarks/reward_training.py
    python benchmarks/reward_training.py --data FOLDER
    python benchmarks/reward_training.py --quick

Useful tokens are those that a run without padding and without sharing would process. The updates are
batches of TRL's length-grouped sampler, spread over one pass of the pairs, so that short and long ones are
among them. TRL runs with the fastest of several micro-batches, ours with the fastest of several
`tokens_per_batch`. Same base, adapter, head, plain Bradley-Terry loss and optimizer; every round starts
from the same weights. Each side is a process of its own.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import cost
import samples
from beside_plan import plan_lines
from measuring import (
    Side,
    arguments,
    fastest,
    in_turns,
    line,
    matmul_peak,
    on_gpu,
    parse,
    ratio,
    serve,
    write_file,
)
from reward_sides import SIDES, our_config
from tables import show

from rlhf.kernels.packed_batch import PackedBatch
from rlhf.kernels.packing import Tree, pack

SIZES = {"limit": 2000, "longest": 512, "update": 16, "updates": 3, "rounds": 3, "exact_pairs": 3}
QUICK = {"limit": 400, "longest": 256, "update": 4, "updates": 2, "rounds": 1, "exact_pairs": 2}
MICRO = (2, 4, 8, 16)
BUDGETS = (512, 1024, 2048)
EXACT_WEIGHTS = 2_000_000_000
"""Most weights of a base whose float32 losses are compared: a larger one takes a GPU's memory and minutes."""
GPU_SIZES = {"limit": 4000, "longest": 2048, "update": 32, "updates": 3, "rounds": 3, "exact_pairs": 3}
GPU_MICRO = (*MICRO, 32)
GPU_BUDGETS = (4096, 8192, 16_384)
"""Pairs in one forward pass of TRL's and tokens in one of ours: both sides run with what is fastest on the
middle update."""


Result = tuple[list[dict[str, Any]], dict[str, Any]]


def measure(options: argparse.Namespace) -> Iterator[Result]:
    """The lines of the table, and what lies behind them: after the rounds, and again after what is left."""
    from rlhf.models.chat import Chat

    sizes = (GPU_SIZES if on_gpu() else SIZES) | (QUICK if options.quick else {})
    items = samples.pairs(
        options.data, Chat.load(options.base), limit=sizes["limit"], longest=sizes["longest"]
    )
    everything = [samples.sides_of(item) for item in items]
    size = sizes["update"]
    chosen = samples.updates_of(everything, size, sizes["updates"])
    pairs = [everything[place] for update in chosen for place in update]
    updates = [list(range(first, first + size)) for first in range(0, len(pairs), size)]
    shared = {
        "base": options.base,
        "clock": options.clock,
        "dtype": options.dtype,
        "longest": sizes["longest"],
        "pairs": pairs,
    }
    logs = options.output / "logs"
    lines, details = rounds_of(options, sizes, shared, updates, logs)
    yield lines, details
    left = {
        "Loss of an update, difference, float32": lambda: exact_losses(
            details["shape"], shared, sizes["exact_pairs"], logs
        ),
        "Memory an update adds, beside TRL at the same tokens a batch": lambda: memory_at_equal_tokens(
            shared, pairs, updates, details["micro"], logs
        ),
    }
    for what, part in left.items():
        if time.monotonic() > options.until:
            lines.append(line(what, None, note="no time was left"))
        else:
            lines.append({**part(), "what": what})
        yield lines, details


def rounds_of(
    options: argparse.Namespace,
    sizes: Mapping[str, Any],
    shared: Mapping[str, Any],
    updates: list[list[int]],
    logs: Any,
) -> Result:
    """Both sides' rates, each with the fastest setting that fits, in turns."""
    pairs, size = shared["pairs"], sizes["update"]
    with ExitStack() as stack:
        sides = {name: stack.enter_context(Side(__file__, name, shared, logs)) for name in SIDES}
        middle, longest = [updates[len(updates) // 2]], [updates[0]]

        def setting(name: str, key: str, allowed: Sequence[int]) -> tuple[int, dict[int, dict[str, Any]]]:
            return fastest(
                lambda value: sides[name].ask(updates=middle, **{key: value}),
                allowed,
                largest=(lambda value: sides[name].ask(updates=longest, **{key: value}))
                if on_gpu()
                else None,
            )

        sizes_of_trl = [item for item in (GPU_MICRO if on_gpu() else MICRO) if item <= size]
        micro, tried = setting("trl", "micro", sizes_of_trl)
        budget, budgets = setting("ours", "tokens_per_batch", GPU_BUDGETS if on_gpu() else BUDGETS)
        print(
            f"Fastest: TRL with {micro} pairs a micro-batch, ours with {budget} tokens a batch.", flush=True
        )
        answers: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
        peaks: list[float] = []
        useful = sum(len(ids) for pair in pairs for ids in pair)

        def one_round(name: str) -> float:
            settings = {"tokens_per_batch": budget} if name == "ours" else {"micro": micro}
            answers[name].append(sides[name].ask(updates=updates, **settings))
            peaks.append(matmul_peak(options.clock, options.dtype))
            return useful / float(answers[name][-1]["seconds"])

        rates = in_turns(
            {name: lambda name=name: one_round(name) for name in SIDES},  # type: ignore[misc]
            sizes["rounds"],
            until=options.until,
        )
    values = [float(answer["losses"][0]) for answer in tried.values()]
    lines = [
        line(
            "Reward training: useful tokens/s beside TRL", ratio(rates["ours"], rates["trl"]), "x", least=2.0
        ),
        *losses_of_a_round(answers, options.dtype),
        line(
            f"One update of TRL's with itself in other micro-batches, {options.dtype}",
            max(values) - min(values),
        ),
        line("Ours", statistics.median(rates["ours"]), "useful tokens/s", note=f"{budget} tokens a batch"),
        line(
            "TRL",
            statistics.median(rates["trl"]),
            "useful tokens/s",
            note=f"{micro} pairs a micro-batch, length-grouped",
        ),
        *shares_of_peak(pairs, size, budget, answers, statistics.median(peaks), options.dtype),
    ]
    if on_gpu():
        config = our_config({**shared, "tokens_per_batch": budget})
        lines += plan_lines(
            config,
            computed=sum(row.computed_tokens for row in packed_rows(pairs, size, budget)),
            gflops=statistics.median(peaks),
            seconds=statistics.median(answer["seconds"] for answer in answers["ours"]),
            peaks={name: max(answer["peak"] for answer in answers[name]) for name in SIDES},
        )
    details = {
        "sizes": sizes,
        "useful_tokens": useful,
        "rates": rates,
        "micro": micro,
        "micro_batches": {str(item): answer["seconds"] for item, answer in tried.items()},
        "budgets": {str(item): answer["seconds"] for item, answer in budgets.items()},
        "losses": {name: answers[name][0]["losses"] for name in SIDES},
        "added_bytes": {name: max(answer["added"] for answer in answers[name]) for name in SIDES},
        "shape": answers["ours"][0]["shape"],
        "matmul_gflops": peaks,
    }
    return lines, details


def losses_of_a_round(answers: Mapping[str, Sequence[Mapping[str, Any]]], dtype: str) -> list[dict[str, Any]]:
    """How far the losses of the first round are apart: its mean, and the update that is furthest.

    In bfloat16 a round is too few pairs to tell its bound from chance: `rounding.py` takes many.
    """
    both = [answers[name][0]["losses"] for name in SIDES]
    means = [statistics.mean(losses) for losses in both]
    furthest = max(abs(ours - other) for ours, other in zip(*both, strict=True))
    return [
        line(
            f"Mean loss of a round's updates, difference, {dtype}",
            abs(means[0] - means[1]),
            most=1e-3 if dtype == "bfloat16" else 1e-5,
        ),
        line(f"The update that is furthest apart, {dtype}", furthest, note="rounding"),
    ]


def shares_of_peak(
    pairs: Sequence[Sequence[Sequence[int]]],
    size: int,
    budget: int,
    answers: Mapping[str, Sequence[Mapping[str, Any]]],
    peak: float,
    dtype: str,
) -> list[dict[str, Any]]:
    """The machine's peak, and what each side makes of it with the tokens it computes."""
    shape = cost.Shape(**answers["ours"][0]["shape"])
    rows = packed_rows(pairs, size, budget)
    operations = {
        "ours": cost.training(shape, rows, read=2 * len(pairs)),
        "trl": cost.training(shape, (Tree((), (tuple(ids),)) for pair in pairs for ids in pair)),
    }
    share = {
        name: 100 * operations[name] / statistics.median(a["seconds"] for a in answers[name]) / 1e9 / peak
        for name in SIDES
    }
    return [
        line(f"Matrix products of this machine, {dtype}", peak, "GFLOP/s"),
        line("Ours: share of that peak", share["ours"], "%"),
        line("TRL: share of that peak, padding not counted", share["trl"], "%"),
    ]


def packed_rows(pairs: Sequence[Sequence[Sequence[int]]], size: int, budget: int) -> list[PackedBatch]:
    """Our side's rows of all updates, of `size` pairs each."""
    trees = [Tree.of_sequences(pair) for pair in pairs]
    updates = (trees[first : first + size] for first in range(0, len(trees), size))
    return [row for update in updates for row in pack(update, budget, pad_id=0)]


def exact_losses(
    shape: Mapping[str, int], shared: Mapping[str, Any], pairs: int, logs: Any
) -> dict[str, Any]:
    """The line of how far the float32 losses of one update are apart."""
    if shape["base"] > EXACT_WEIGHTS:
        return line("", None, note="of a smaller base only")
    losses = []
    for name in SIDES:
        with Side(__file__, name, {**shared, "dtype": "float32"}, logs) as side:
            answer = side.ask(updates=[list(range(pairs))], tokens_per_batch=1024, micro=pairs)
            losses.append(answer["losses"][0])
    return line("", abs(float(losses[0]) - float(losses[1])), most=1e-5)


def memory_at_equal_tokens(
    shared: Mapping[str, Any], pairs: Sequence[Any], updates: list[list[int]], micro: int, logs: Any
) -> dict[str, Any]:
    """The line of the bytes that two updates of the longest batch add, in a fresh process each; ours has as
    many tokens a batch as TRL's padded one."""
    tokens = micro * 2 * max(len(ids) for place in updates[0][:micro] for ids in pairs[place])
    figures = {}
    for name in SIDES:
        with Side(__file__, name, shared, logs) as side:
            answer = side.ask(updates=[updates[0]] * 2, tokens_per_batch=tokens, micro=micro)
            figures[name] = int(answer["added"])
    note = f"{figures['ours'] / 2**30:.2f} and {figures['trl'] / 2**30:.2f} GiB, {tokens} tokens"
    return line("", figures["ours"] / figures["trl"], "x", most=1.0, note=note)


def main() -> None:
    """Measure, print, write."""
    options = parse(arguments(__doc__))
    if options.side:
        serve(SIDES[options.side])
        return
    lines: list[dict[str, Any]] = []
    for lines, details in measure(options):
        write_file(options, "reward_training", lines, details)
    show("reward_training", lines)


if __name__ == "__main__":
    main()
