"""Reward training beside TRL's RewardTrainer: useful tokens a second, loss and memory, on the same pairs in
the same updates.

    python benchmarks/reward_training.py                    # real pairs of ../shared/data, or --data
        FOLDER; else the demo's
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
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import cost
import samples
from measuring import (
    Handler,
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
    timed,
    write_result,
)

from rlhf.config.reward import RewardConfig
from rlhf.kernels.packing import Tree, pack

SIZES = {"limit": 2000, "longest": 512, "update": 16, "updates": 3, "rounds": 3, "exact_pairs": 3}
QUICK = {"limit": 400, "longest": 256, "update": 4, "updates": 2, "rounds": 1, "exact_pairs": 2}
MICRO = (2, 4, 8, 16)
BUDGETS = (512, 1024, 2048)
GPU_SIZES = {"limit": 4000, "longest": 2048, "update": 32, "updates": 3, "rounds": 3, "exact_pairs": 3}
GPU_BUDGETS = (4096, 8192, 16_384)
"""Pairs in one forward pass of TRL's and tokens in one of ours: both sides run with what is fastest on the
middle update."""


def our_config(options: Mapping[str, Any]) -> RewardConfig:
    """One output, pairs alone, plain Bradley-Terry."""
    return RewardConfig.model_validate(
        {
            "output": "unused",
            "model": {"base": options["base"], "dtype": options["dtype"], "max_length": options["longest"]},
            "attributes": ["reward"],
            "data": {"preferences": [{"path": "demo", "format": "helpsteer2-preference"}]},
            "stages": [{"name": "pairs", "preference_weight": 1, "preference_loss": "regular"}],
        }
    )


def their_model(options: Mapping[str, Any], pad_id: int) -> Any:
    """TRL's: by PEFT's own hand, since `with_adapter` would make its layers ours."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForSequenceClassification

    from rlhf.config.schema import AdapterConfig
    from rlhf.models.embedded import resolve_base
    from rlhf.models.loading import lora_config

    base = AutoModelForSequenceClassification.from_pretrained(
        resolve_base(options["base"]),
        num_labels=1,
        dtype=getattr(torch, options["dtype"]),
        pad_token_id=pad_id,
    )
    return get_peft_model(base, lora_config(**AdapterConfig().model_dump(), head=True))


def ours(options: Mapping[str, Any]) -> Handler:
    """`train-reward`'s trainer on given pairs: [chosen ids, rejected ids]."""
    from reward_trainer import reward_trainer
    from transformers import set_seed

    from reward.training.batches import Item
    from reward.training.build import build_model
    from rlhf.models.chat import Chat

    set_seed(0)
    config, chat = our_config(options), Chat.load(options["base"])
    model = build_model(config, chat)
    start(model)
    items = [Item(Tree.of_sequences(pair[::-1]), ((None,), (None,)), 1) for pair in options["pairs"]]

    def train(request: Mapping[str, Any]) -> Mapping[str, Any]:
        updates: list[list[int]] = request["updates"]
        losses: list[float] = []
        start(model)
        if "prepare" in request:
            request["prepare"](model=model)
        trainer = reward_trainer(
            config,
            model,
            chat,
            items,
            order=[place for update in updates for place in update],
            updates=len(updates),
            tokens_per_batch=request["tokens_per_batch"],
            record=lambda _, figures: losses.append(float(figures["loss/bt"])),
        )
        return timed(trainer, options["clock"]) | {"losses": losses} | {"shape": vars(cost.Shape.of(model))}

    return train


def theirs(options: Mapping[str, Any]) -> Handler:
    """TRL's trainer on the same pairs, through its door for token ids."""
    import torch
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import set_seed
    from transformers.trainer_callback import PrinterCallback
    from trl import RewardConfig as TRLRewardConfig
    from trl import RewardTrainer

    from rlhf.config.schema import OptimizerConfig
    from rlhf.models.chat import Chat

    class InOrder(RewardTrainer):
        """The order was made by the sampler before, see `samples.updates_of`."""

        losses: list[float]

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return SequentialSampler(self.train_dataset)

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            if "loss" in logs:
                self.losses.append(logs["loss"])

    set_seed(0)
    chat = Chat.load(options["base"])
    model = their_model(options, chat.pad_id)
    start(model)
    optimizer = OptimizerConfig()

    def train(request: Mapping[str, Any]) -> Mapping[str, Any]:
        updates: list[list[int]] = request["updates"]
        pairs = [options["pairs"][place] for update in updates for place in update]
        start(model)
        trainer = InOrder(
            model,
            args=TRLRewardConfig(
                tempfile.mkdtemp(),
                per_device_train_batch_size=request["micro"],
                gradient_accumulation_steps=len(updates[0]) // request["micro"],
                max_steps=len(updates),
                learning_rate=optimizer.learning_rate,
                lr_scheduler_type="constant",
                weight_decay=optimizer.weight_decay,
                adam_beta1=optimizer.betas[0],
                adam_beta2=optimizer.betas[1],
                max_grad_norm=optimizer.max_grad_norm,
                max_length=None,
                bf16=options["dtype"] == "bfloat16",
                use_cpu=not torch.cuda.is_available(),
                gradient_checkpointing=False,
                logging_steps=1,
                report_to="none",
                save_strategy="no",
                remove_unused_columns=False,
                dataloader_pin_memory=False,
                disable_tqdm=True,
                seed=0,
            ),
            train_dataset=Dataset.from_list([{"chosen_ids": c, "rejected_ids": r} for c, r in pairs]),
            processing_class=chat.tokenizer,
        )
        trainer.losses = []
        trainer.remove_callback(PrinterCallback)
        return timed(trainer, options["clock"]) | {"losses": trainer.losses}

    return train


SIDES = {"ours": ours, "trl": theirs}


def start(model: Any) -> None:
    """The same weights for both sides: whatever is trained gets small random values, in the order of
    names."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in sorted(
            (name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad
        ):
            parameter.data = parameter.data.float()
            parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.02, generator=generator))
            parameter.grad = None


def measure(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The lines of the table, and what lies behind them."""
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
    with ExitStack() as stack:
        sides = {name: stack.enter_context(Side(__file__, name, shared, logs)) for name in SIDES}
        middle = [updates[len(updates) // 2]]
        micro, tried = fastest(
            lambda size: sides["trl"].ask(updates=middle, micro=size),
            [item for item in MICRO if item <= size],
        )
        budget, budgets = fastest(
            lambda budget: sides["ours"].ask(updates=middle, tokens_per_batch=budget),
            GPU_BUDGETS if on_gpu() else BUDGETS,
        )
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

        rates = in_turns({name: lambda name=name: one_round(name) for name in SIDES}, sizes["rounds"])  # type: ignore[misc]
    memories = memory_at_equal_tokens(shared, pairs, updates, micro, logs)
    values = [float(answer["losses"][0]) for answer in tried.values()]
    lines = [
        line(
            "Reward training: useful tokens/s beside TRL", ratio(rates["ours"], rates["trl"]), "x", least=2.0
        ),
        line(
            "Loss of an update, difference, float32",
            exact_losses(shared, sizes["exact_pairs"], logs),
            most=1e-5,
        ),
        *losses_of_a_round(answers, options.dtype),
        line(
            f"One update of TRL's with itself in other micro-batches, {options.dtype}",
            max(values) - min(values),
        ),
        line(
            "Memory an update adds, beside TRL at the same tokens a batch",
            memories["ours"] / memories["trl"],
            "x",
            most=1.0,
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
    details = {
        "sizes": sizes,
        "useful_tokens": useful,
        "rates": rates,
        "micro_batches": {str(item): answer["seconds"] for item, answer in tried.items()},
        "budgets": {str(item): answer["seconds"] for item, answer in budgets.items()},
        "losses": {name: answers[name][0]["losses"] for name in SIDES},
        "added_bytes": memories,
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
    trees = [Tree.of_sequences(pair) for pair in pairs]
    updates = (trees[first : first + size] for first in range(0, len(trees), size))
    operations = {
        "ours": sum(
            cost.training(shape, pack(update, budget, pad_id=0), read=2 * size) for update in updates
        ),
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


def exact_losses(shared: Mapping[str, Any], pairs: int, logs: Any) -> float:
    """How far the float32 losses of one update are apart."""
    losses = []
    for name in SIDES:
        with Side(__file__, name, {**shared, "dtype": "float32"}, logs) as side:
            answer = side.ask(updates=[list(range(pairs))], tokens_per_batch=1024, micro=pairs)
            losses.append(answer["losses"][0])
    return abs(float(losses[0]) - float(losses[1]))


def memory_at_equal_tokens(
    shared: Mapping[str, Any], pairs: Sequence[Any], updates: list[list[int]], micro: int, logs: Any
) -> dict[str, int]:
    """Bytes that two updates of the longest batch add, in a fresh process each; ours has as many tokens a
    batch as TRL's padded one."""
    tokens = micro * 2 * max(len(ids) for place in updates[0][:micro] for ids in pairs[place])
    figures = {}
    for name in SIDES:
        with Side(__file__, name, shared, logs) as side:
            answer = side.ask(updates=[updates[0]] * 2, tokens_per_batch=tokens, micro=micro)
            figures[name] = int(answer["added"])
    return figures | {"tokens": tokens}


def main() -> None:
    """Measure, print, write."""
    options = parse(arguments(__doc__))
    if options.side:
        serve(SIDES[options.side])
        return
    write_result(options, "reward_training", *measure(options))


if __name__ == "__main__":
    main()
