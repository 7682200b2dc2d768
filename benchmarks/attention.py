"""Attention by blocks beside torch's kernel with a dense mask: one step of reward training, in processor
time of one thread.

    python benchmarks/attention.py

Every shape holds about 1,024 tokens; the model is the embedded one with LoRA of rank 16 in bfloat16. The
two take turns. On 2026-11-22, on a busy machine of 2 AMD EPYC cores, blocks took 0.51 to 0.65 of the
kernel's time in one row of 1,024 tokens, whatever was in it, and 0.78 in four rows of 256: with blocks the
length of a row costs nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from rlhf.kernels.inputs import packed_inputs
from rlhf.kernels.packed_batch import PackedBatch
from rlhf.kernels.packing import Tree, pack
from rlhf.models.forwards import enable_packed_scores
from rlhf.models.loading import autocast, load_classifier, lora_config, with_adapter

Shape = tuple[tuple[tuple[int, tuple[int, ...]], ...], int]
SHAPES: dict[str, Shape] = {
    "4 rows of a sequence of 256": (((0, (256,)),) * 4, 256),
    "1 row of four sequences of 256": (((0, (256,)),) * 4, 1024),
    "1 row of four pairs, prompts of 50": (((50, (100, 106)),) * 4, 1024),
    "1 row of a pair of 512, prompt of 64": (((64, (480, 480)),), 1024),
    "1 row of two groups of 8 answers": (((64, (56,) * 8),) * 2, 1024),
    "1 row of a sequence of 1,024": (((0, (1024,)),), 1024),
}
"""Name: trees as lengths of trunk and branches, and the length of a row."""


def batch_of(shape: Shape) -> PackedBatch:
    """The batch of a shape; which ids it holds does not matter."""
    trees, row = shape
    (batch,) = pack(
        [Tree(ids(trunk), tuple(ids(length) for length in branches)) for trunk, branches in trees],
        1024,
        pad_id=0,
        short_row=row,
    )
    return batch


def ids(count: int) -> tuple[int, ...]:
    """So many token ids."""
    return tuple(range(10, 10 + count))


def step(model: Any, batch: PackedBatch, *, by_blocks: bool) -> float:
    """Seconds of processor time of a forward and a backward pass."""
    started = time.process_time()
    with autocast(model.get_base_model()):
        inputs = packed_inputs(batch)
        if not by_blocks:
            inputs["blocks"] = None
        scores_NA = model(**inputs, score_at=batch.last_tokens_N)
    scores_NA.sum().backward()
    model.zero_grad()
    return time.process_time() - started


def main() -> None:
    """Print medians and their ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds: int = parser.parse_args().rounds
    torch.set_num_threads(1)
    base = load_classifier(
        "embedded", attributes=["reward"], revision=None, dtype="bfloat16", quantization="none", pad_id=0
    )
    enable_packed_scores(base)
    adapter = lora_config(rank=16, alpha=32, dropout=0.0, targets="all-linear", head=True)
    model = with_adapter(base, adapter).train()
    table = Table("", "useful tokens", "kernel: s", "blocks: s", "tokens/s", "blocks / kernel")
    for name, shape in SHAPES.items():
        batch = batch_of(shape)
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for number in range(rounds + 1):  # the first round warms up
            for by_blocks, taken in seconds.items():
                once = step(model, batch, by_blocks=by_blocks)
                if number:
                    taken.append(once)
        blocks, kernel = (statistics.median(seconds[by_blocks]) for by_blocks in (True, False))
        useful = batch.useful_tokens
        figures = (f"{kernel:.2f}", f"{blocks:.2f}", f"{useful / blocks:.0f}", f"{blocks / kernel:.2f}")
        table.add_row(name, str(useful), *figures)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
