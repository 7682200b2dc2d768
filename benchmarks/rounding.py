"""What a number format does to scores and losses: our layers and packed rows beside transformers' and
PEFT's own, one sequence at a time.

    python benchmarks/rounding.py                    # real pairs of ../shared/data, or --data FOLDER; else
        the demo's

In bfloat16 the losses of a pair are about 0.011 apart (its standard error times the root of its pairs), so
the means of 48, a round of `reward_training.py`, are 0.0016 apart by chance, and say nothing of a bound of
0.001. Hence many pairs, forward passes alone, of that script's model and starting weights. The truth, of
some of them, is transformers' and PEFT's in float32.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import samples
from measuring import Handler, Side, arguments, line, parse, serve, write_result
from reward_sides import our_config, start, their_model

from rlhf.kernels.packing import Tree, pack

SIZES = {"pairs": 1280, "true": 160, "longest": 512}
QUICK = {"pairs": 8, "true": 4, "longest": 256}
BUDGET = 2048

Scores = Sequence[Sequence[float]]
"""Of each pair what the chosen and the rejected sequence get."""


def ours(options: Mapping[str, Any]) -> Handler:
    """Pairs as trees, in packed rows."""
    import torch

    from reward.training.build import build_model
    from rlhf.kernels.inputs import packed_inputs
    from rlhf.models.chat import Chat
    from rlhf.models.loading import autocast

    chat = Chat.load(options["base"])
    model = build_model(our_config(options), chat).eval()
    start(model)
    trees = [Tree.of_sequences(pair) for pair in options["pairs"]]

    @torch.no_grad()
    def score(_: Mapping[str, Any]) -> Mapping[str, Any]:
        scores: list[Any] = [None] * len(trees)
        for batch in pack(trees, BUDGET, pad_id=chat.pad_id):
            with autocast(model.get_base_model()):
                found_NA = model(**packed_inputs(batch), score_at=batch.last_tokens_N)
            for tree, pair in zip(batch.trees, found_NA.float().view(-1, 2).tolist(), strict=True):
                scores[tree] = pair
        return {"scores": scores}

    return score


def theirs(options: Mapping[str, Any]) -> Handler:
    """As TRL's RewardTrainer computes, without padding."""
    import torch

    from rlhf.models.chat import Chat
    from rlhf.models.loading import autocast

    model = their_model(options, Chat.load(options["base"]).pad_id).eval()
    start(model)

    def one(ids: Sequence[int]) -> float:
        with autocast(model.get_base_model()):
            given = torch.tensor([ids], device=model.device)
            return float(model(input_ids=given, attention_mask=torch.ones_like(given)).logits)

    @torch.no_grad()
    def score(_: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"scores": [[one(ids) for ids in pair] for pair in options["pairs"]]}

    return score


SIDES = {"ours": ours, "trl": theirs}


def losses(scores: Scores) -> list[float]:
    """-log sigmoid(chosen - rejected) of each pair."""
    return [math.log1p(math.exp(rejected - chosen)) for chosen, rejected in scores]


def root_mean_square(scores: Scores, truth: Scores) -> float:
    """How far scores are from the true ones, of the pairs that have them."""
    apart = [
        item - other
        for pair, true in zip(scores[: len(truth)], truth, strict=True)
        for item, other in zip(pair, true, strict=True)
    ]
    return math.sqrt(statistics.fmean(gap * gap for gap in apart))


def measure(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The lines of the table, and what lies behind them."""
    from rlhf.models.chat import Chat

    sizes = SIZES | (QUICK if options.quick else {})
    items = samples.pairs(
        options.data, Chat.load(options.base), limit=4 * sizes["pairs"], longest=sizes["longest"]
    )
    pairs = [samples.sides_of(item) for item in items][: sizes["pairs"]]
    shared = {"base": options.base, "longest": sizes["longest"]}
    scores: dict[str, Scores] = {}
    for name, side, dtype, chosen_pairs in (
        ("truth", "trl", "float32", pairs[: sizes["true"]]),
        ("ours", "ours", options.dtype, pairs),
        ("trl", "trl", options.dtype, pairs),
    ):
        with Side(
            __file__, side, {**shared, "dtype": dtype, "pairs": chosen_pairs}, options.output / "logs"
        ) as scorer:
            scores[name] = scorer.ask()["scores"]
        print(f"  {name}: {len(chosen_pairs)} pairs in {dtype}", flush=True)
    apart = [a - b for a, b in zip(losses(scores["ours"]), losses(scores["trl"]), strict=True)]
    error = statistics.stdev(apart) / math.sqrt(len(apart))
    lines = [
        line(
            f"Mean loss of {len(pairs)} pairs, difference, {options.dtype}",
            abs(statistics.fmean(apart)),
            most=1e-3,
            note=f"standard error {error:.1e}",
        ),
        line(
            f"Ours in {options.dtype}: scores from float32's, root mean square of "
            f"{len(scores['truth'])} pairs",
            root_mean_square(scores["ours"], scores["truth"]),
        ),
        line(f"TRL's in {options.dtype}: the same", root_mean_square(scores["trl"], scores["truth"])),
        line(
            "Scores themselves: standard deviation",
            statistics.stdev(item for pair in scores["truth"] for item in pair),
        ),
    ]
    return lines, {"sizes": sizes, "scores": scores}


def main() -> None:
    """Measure, print, write."""
    options = parse(arguments(__doc__))
    if options.side:
        serve(SIDES[options.side])
        return
    write_result(options, "rounding", *measure(options))


if __name__ == "__main__":
    main()
