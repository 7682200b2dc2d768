"""The same tokens in long and in short rows: forward and backward of reward training, in processor time of one thread.

    python benchmarks/row_length.py

A packed row has a dense attention mask, which costs the square of its length. Every shape holds 1,024 tokens in trees of 256, on
the embedded model with LoRA of rank 16 in bfloat16. Processor time of one thread, so that other work hardly shows.
"""

from __future__ import annotations

import statistics
import time

import torch
from rich.console import Console
from rich.table import Table

from rlhf.core.models import (
    autocast,
    enable_packed_scores,
    load_classifier,
    lora_config,
    packed_inputs,
    with_adapter,
)
from rlhf.core.packing import Tree, pack

TREE, TREES, ROUNDS = 256, 4, 3
ROWS = (1024, 512, 256)


def main() -> None:
    """Train one step in each shape, in turns, and print medians."""
    torch.set_num_threads(1)
    base = load_classifier(
        "embedded", attributes=["reward"], revision=None, dtype="bfloat16", quantization="none", pad_id=0
    )
    enable_packed_scores(base)
    model = with_adapter(
        base, lora_config(rank=16, alpha=32, dropout=0.0, targets="all-linear", head=True)
    ).train()
    trees = [Tree((), (tuple(range(10, 10 + TREE)),)) for _ in range(TREES)]
    seconds: dict[int, list[float]] = {length: [] for length in ROWS}
    for _ in range(ROUNDS + 1):  # the first round warms up
        for length in ROWS:
            (batch,) = pack(trees, TREE * TREES, pad_id=0, short_row=length)
            started = time.process_time()
            with autocast(base):
                scores_NA = model(**packed_inputs(batch), score_at=batch.last_tokens_N())
            scores_NA.sum().backward()
            model.zero_grad()
            seconds[length].append(time.process_time() - started)
    table = Table("rows", "tokens a second of one thread", "times the long row")
    medians = {length: statistics.median(times[1:]) for length, times in seconds.items()}
    for length, median in medians.items():
        rows = TREE * TREES // length
        table.add_row(
            f"{rows} x {length}", f"{TREE * TREES / median:.0f}", f"{medians[ROWS[0]] / median:.2f}"
        )
    Console().print(table)


if __name__ == "__main__":
    main()
