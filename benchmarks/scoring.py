"""Our Scorer beside a padded batch of plain transformers, sorted by length: same model, same conversations,
same scores.

    python benchmarks/scoring.py runs/demo/reward/final                       # the demo's benchmark
    python benchmarks/scoring.py runs/demo/reward/final pairs.jsonl.gz --pairs 200 --rounds 5

The other side is AutoModelForSequenceClassification with the adapter by PEFT, in the same number format and
under the same autocast, its batch size the best of those tried. Both start from messages and end with
scores. They take turns; what is compared is the median of each over the rounds of one run: processor time
of one thread, so that other work hardly shows, and on a GPU the clock's. MODEL is the `final/` folder of
`rlhf train-reward`, FILE has RewardBench's columns.

On 2026-11-22, on a busy machine of 2 AMD EPYC cores, with a reward model on the embedded base and 24 real
pairs of long answers (13,832 tokens, `--pairs 24 --rounds 5`), ours took 0.69 of the time of the best other
one, batches of 2.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

from reward.evaluation.self_check import TOLERANCE
from reward.scorer import Scorer
from rlhf.adapters.storage import RewardAdapter
from rlhf.core.records import Conversation, Message
from rlhf.data.comparisons import load_comparisons
from rlhf.models.embedded import resolve_base

BATCH_SIZES = (1, 2, 4, 8)


def conversations_of(path: str, pairs: int | None, scorer: Scorer) -> list[Conversation]:
    """Both sides of the pairs, side by side; those too long for the model are left out."""
    collected = []
    for item in load_comparisons(path)[0][:pairs]:
        sides = [(*item.prompt, Message("assistant", text)) for text in (item.chosen, item.rejected)]
        if all(len(scorer.chat.conversation_ids(side)) <= scorer.max_length for side in sides):
            collected += sides
    return collected


class Plain:
    """A sequence classifier of transformers with its adapter by PEFT."""

    def __init__(self, folder: str, scorer: Scorer, *, merged: bool) -> None:
        card = RewardAdapter.read(Path(folder)).card
        base = AutoModelForSequenceClassification.from_pretrained(
            resolve_base(card["base"]),
            revision=card["revision"],
            num_labels=len(scorer.attributes),
            dtype=scorer.model.dtype,
            pad_token_id=scorer.chat.pad_id,
        )
        model = PeftModel.from_pretrained(base.to(scorer.model.device), folder)
        self.model = (model.merge_and_unload() if merged else model).eval()
        self.chat, self.half = scorer.chat, scorer.model.dtype == torch.bfloat16

    def score(self, conversations: Sequence[Conversation], batch_size: int) -> list[float]:
        """The first output for each conversation, in batches of neighbours by length."""
        ids = list(self.chat.conversations_ids(conversations))
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        scores = [0.0] * len(ids)
        device = self.model.device
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=self.half):
            for start in range(0, len(order), batch_size):
                members = order[start : start + batch_size]
                batch = self.chat.tokenizer.pad(
                    {"input_ids": [ids[index] for index in members]},
                    padding_side="right",
                    return_tensors="pt",
                )
                logits = self.model(**batch.to(device)).logits
                for index, value in zip(members, logits[:, 0].float().tolist(), strict=True):
                    scores[index] = value
        return scores


def main() -> None:
    """Check that the scores agree, time both in turns, print the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("file", nargs="?", default="demo")
    parser.add_argument("--pairs", type=int, help="only the first so many")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens-per-batch", type=int, default=1024, help="of our Scorer")
    parser.add_argument(
        "--merged", action="store_true", help="merge the other side's adapter into its weights"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()  # PEFT loads the head after transformers reports it missing
    scorer = Scorer.load(arguments.model, tokens_per_batch=arguments.tokens_per_batch)
    plain = Plain(arguments.model, scorer, merged=arguments.merged)
    conversations = conversations_of(arguments.file, arguments.pairs, scorer)

    def ours() -> list[float]:
        return [score.reward for score in scorer.score(conversations)]

    ways: dict[str, Callable[[], list[float]]] = {"ours": ours}
    for size in BATCH_SIZES:
        ways[f"transformers, batches of {size}"] = lambda size=size: plain.score(conversations, size)  # type: ignore[misc]
    difference = require_equal({name: way() for name, way in ways.items()})  # also warms up
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            started = clock()
            way()
            seconds[name].append(clock() - started)
    show(seconds, conversations, scorer, difference)


def require_equal(scores: dict[str, list[float]]) -> float:
    """The largest difference between our scores and the others', as a share of max(1, largest score)."""
    ours = scores["ours"]
    scale = max(1.0, *map(abs, ours))
    differences = [abs(a - b) / scale for other in scores.values() for a, b in zip(ours, other, strict=True)]
    largest = max(differences, key=lambda item: (math.isnan(item), item))
    if not largest <= TOLERANCE:
        sys.exit(f"the scores differ by {largest:.3g} of the largest, more than {TOLERANCE:g}")
    return largest


def show(
    seconds: dict[str, list[float]], conversations: list[Conversation], scorer: Scorer, difference: float
) -> None:
    """Medians with their range, tokens a second, and the ratio of medians to ours."""
    tokens = sum(map(len, scorer.chat.conversations_ids(conversations)))
    table = Table(
        title=f"{len(conversations):,} conversations, {tokens:,} tokens, scored", title_justify="left"
    )
    table.add_column("")
    for header in ("median s", "fastest", "slowest", "tokens/s", "times ours"):
        table.add_column(header, justify="right")
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    for name, taken in seconds.items():
        figures = (
            medians[name],
            min(taken),
            max(taken),
            tokens / medians[name],
            medians[name] / medians["ours"],
        )
        table.add_row(name, *(f"{value:,.2f}" for value in figures))
    Console().print(table)
    best = min(median for name, median in medians.items() if name != "ours")
    print(f"Ours takes {medians['ours'] / best:.2f} of the time of the best other one.")
    print(f"Scores differ by at most {difference:.2g} of the largest (allowed: {TOLERANCE:g}).")


if __name__ == "__main__":
    main()
