"""What `rlhf plan` predicts beside what the real trainers take, on this machine's CPU.

    python benchmarks/plan_vs_measured.py      # the embedded model in bf16, fp32 and NF4, both commands
    python benchmarks/plan_vs_measured.py --base FOLDER --tokens 512

Predicted: a trace of tensors without data (`rlhf.plan.memory.trace`). Measured: the real trainer's
`training_step` on real tensors, an update of three rows, under torch's profiler: the CPU allocator's own
account of every block it hands out and takes back, those that kernels take for themselves included. The
comparison is of what an update adds to the model: gradients, activations and temporaries, where the two could
differ; weights are counted beside it. The peak resident set is printed too, and is no test: it holds
libraries, freed pages and the profiler's own records.
"""

from __future__ import annotations

import argparse
import logging
import random
import resource
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from reward_trainer import reward_trainer
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from policy.rewards.protocol import RewardResult
from policy.training.build import build_trainer
from reward.save import save_final
from reward.training.batches import Item
from reward.training.build import build_model
from rlhf.config.policy import PolicyConfig
from rlhf.config.reward import RewardConfig
from rlhf.core import formats
from rlhf.core.records import Message, Prompt, Rollout
from rlhf.kernels.packing import CPU_GRAIN, Tree
from rlhf.models.chat import Chat
from rlhf.plan.memory.ledger import Peak
from rlhf.plan.memory.shapes import load_shape
from rlhf.plan.memory.trace import GRADIENTS, WEIGHTS, trace
from rlhf.plan.request import row_of

ROWS = 3
GROUP = 4


@dataclass(frozen=True)
class Compared:
    """Bytes of one pass, over the model that is there; and of its frozen weights."""

    name: str
    planned: int
    measured: int
    planned_weights: int = 0
    measured_weights: int = 0

    @property
    def error(self) -> float:
        """Planned over measured, less one."""
        return self.planned / self.measured - 1


def allocator_peak(run: Callable[[], object]) -> int:
    """The most bytes the CPU allocator had given out at once during a call, over what it had at its start."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = list(recorded.profiler.kineto_results.experimental_event_tree())  # type: ignore[union-attr]
    levels: list[tuple[int, int, int]] = []
    while events:
        event = events.pop()
        events += event.children
        if event.tag.name == "Allocation":
            fields = event.extra_fields
            levels.append((event.start_time_ns, fields.total_allocated, fields.alloc_size))
    # The account continues from call to call: the first block's own size is what it added to the level at the
    # start.
    _, after, size = min(levels)
    return max(level for _, level, _ in levels) - (after - size)


def compare_reward(
    base: str, *, dtype: str, quantization: str, checkpointing: bool, tokens: int
) -> list[Compared]:
    """One update of `train-reward` and its validation: rows of one pair that fill the budget."""
    config = RewardConfig.model_validate(
        {
            "output": "unused",
            "model": {
                "base": base,
                "dtype": dtype,
                "quantization": quantization,
                "max_length": tokens // 2,
                "gradient_checkpointing": checkpointing,
            },
            "data": {"preferences": [{"path": "demo", "format": "helpsteer2-preference"}]},
            "stages": [{"name": "pairs", "preference_weight": 1, "regression_weight": 0}],
            "tokens_per_batch": tokens,
        }
    )
    chat = Chat.load(base)
    model = build_model(config, chat)
    unrated = (None,) * len(config.attributes)
    items = [Item(Tree((), (ids(tokens // 2), ids(tokens // 2))), (unrated,) * 2, 2) for _ in range(ROWS)]
    trainer = reward_trainer(config, model, chat, items, order=range(ROWS), validation=items)
    weights = weights_of(model)
    update = peak_of_step(trainer)
    validation = allocator_peak(
        trainer.evaluate
    )  # after training has begun: accelerate has put autocast around the model
    # A plan takes pairs that share half their tokens; here they share none, and attention goes by what a
    # token sees.
    row = replace(row_of(config, grain=CPU_GRAIN), sequences=2)
    planned = trace(load_shape(base), row, on_gpu=False)
    return [
        Compared(
            "update", added(planned.peaks["update"]), update, planned.peaks["update"].kinds[WEIGHTS], weights
        ),
        Compared("validation", added(planned.peaks["scoring"], gradients=False), validation),
    ]


def compare_policy(
    base: str,
    *,
    dtype: str,
    quantization: str,
    checkpointing: bool,
    tokens: int,
    algorithm: str = "reinforce",
) -> list[Compared]:
    """One update of `align-policy`, the reference in it, and its scoring: rows of one group that fill the
    budget."""
    prompt, answer = tokens // 8, tokens * 7 // 8 // GROUP - 1
    reward = reward_model(base, dtype=dtype, quantization=quantization)
    config = PolicyConfig.model_validate(
        {
            "output": "unused",
            "reward": str(reward),
            "model": {
                "base": base,
                "dtype": dtype,
                "quantization": quantization,
                "max_length": tokens,
                "gradient_checkpointing": checkpointing,
            },
            "data": {"prompts": [{"path": "demo"}], "max_prompt_tokens": prompt},
            "rollouts": {
                "engine": "transformers",
                "prompts_per_step": ROWS,
                "samples_per_prompt": GROUP,
                "max_new_tokens": answer,
            },
            "algorithm": {"name": algorithm},
            "steps": 1,
            "tokens_per_batch": tokens,
        }
    )
    chat = Chat.load(base)
    prompts = [Prompt((Message("user", f"Say {number}."),)) for number in range(ROWS)]
    groups = [[rollout_of(ids(prompt), ids(answer)) for _ in range(GROUP)] for _ in range(ROWS)]
    for group in groups:
        group[:] = [rollout_of(group[0].prompt_ids, rollout.completion_ids) for rollout in group]
    run: Any = SimpleNamespace(
        checkpoints=Path(tempfile.mkdtemp()), metrics=lambda *_: None, samples=lambda *_: None
    )
    trainer = build_trainer(config, chat, prompts, run)
    trainer.engine = SimpleNamespace(sync=lambda _: None, generate=lambda *_, **__: groups, figures=dict)  # type: ignore[assignment]
    trees = [Tree(group[0].prompt_ids, tuple(r.completion_ids for r in group)) for group in groups]
    scoring = allocator_peak(lambda: score_trees(trainer.rewards.terms[0].term.scorer, trees, tokens))
    trainer.rewards = SimpleNamespace(
        of=lambda _, rollouts: RewardResult([random.random() for _ in rollouts])
    )  # type: ignore[assignment]
    weights = weights_of(trainer.model)
    update = peak_of_step(trainer)
    # A plan asks for every token of a row, the most there can be; here the prompts' tokens are known.
    row = replace(row_of(config, grain=CPU_GRAIN), logprob_tokens=GROUP * answer)
    planned = trace(load_shape(base), row, on_gpu=False)
    passes = [planned.peaks[name] for name in ("update", "critic", "measuring") if name in planned.peaks]
    return [
        Compared("update", max(map(added, passes)), update, planned.peaks["update"].kinds[WEIGHTS], weights),
        Compared("scoring", added(planned.peaks["scoring"], gradients=False), scoring),
    ]


def score_trees(scorer: Any, trees: Sequence[Tree], tokens: int) -> None:
    """What `Scorer.score` does once it has token ids."""
    from rlhf.kernels.packing import pack
    from rlhf.models.names import REWARD
    from rlhf.models.roles import role

    with role(scorer.model, REWARD), torch.inference_mode():
        for batch in pack(trees, tokens, pad_id=scorer.chat.pad_id):
            scorer._forward(batch)  # noqa: SLF001  # its only other door takes words


def peak_of_step(trainer: Any) -> int:
    """The peak of one whole update of a trainer, as `train()` runs it."""
    step, peaks = trainer.training_step, []

    def recorded(*arguments: Any, **named: Any) -> Any:
        result: list[Any] = []
        peaks.append(allocator_peak(lambda: result.append(step(*arguments, **named))))
        return result[0]

    trainer.training_step = recorded
    trainer.log = lambda *_, **__: None
    trainer.train()
    return max(peaks)


def added(peak: Peak, *, gradients: bool = True) -> int:
    """What a pass adds to weights, adapters and moments."""
    kinds = ("activations", *((GRADIENTS,) if gradients else ()))
    return sum(peak.kinds.get(kind, 0) for kind in kinds)


def weights_of(model: Any) -> int:
    """Bytes of the storages of frozen weights, the scales of 4-bit ones included; the reward's adapter is
    none."""
    sizes_by_pointer: dict[int, int] = {}

    def add(tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        sizes_by_pointer[storage.data_ptr()] = storage.nbytes()

    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and ".reward." not in name:
            add(parameter)
            state = getattr(parameter, "quant_state", None)
            for scale in () if state is None else (state.absmax, state.state2.absmax):
                add(scale)
    return sum(sizes_by_pointer.values())


def reward_model(base: str, *, dtype: str, quantization: str) -> Path:
    """An untrained reward model of one attribute."""
    config = RewardConfig.model_validate(
        {
            "output": "unused",
            "model": {"base": base, "dtype": dtype, "quantization": quantization},
            "attributes": ["reward"],
            "data": {"preferences": [{"path": "demo", "format": "helpsteer2-preference"}]},
            "stages": [{"name": "pairs", "preference_weight": 1}],
            "head_start": 0,
        }
    )
    folder = Path(tempfile.mkdtemp()) / "final"
    config = config.model_copy(update={"model": config.model.model_copy(update={"max_length": 256})})
    chat = Chat.load(base)
    save_final(config, build_model(config, chat), chat, folder)
    return folder


def ids(count: int) -> tuple[int, ...]:
    """Token ids; which ones, memory does not care."""
    return tuple(random.randrange(10, 1000) for _ in range(count))


def rollout_of(prompt: tuple[int, ...], answer: tuple[int, ...]) -> Rollout:
    """An answer that ended."""
    return Rollout(prompt_ids=prompt, completion_ids=answer, logprobs=(), text="", finished=True)


def main() -> None:
    """Print the table."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--tokens", type=int, default=512)
    options = parser.parse_args()
    formats.slow_bfloat16 = lambda: False  # type: ignore[assignment]  # what is planned is measured, however slow
    table = Table(title=f"{options.base}, rows of {options.tokens} tokens; MiB", title_justify="left")
    for column in ("command", "base", "pass", "planned", "measured", "error", "weights planned", "measured"):
        table.add_column(column, justify="right" if column not in ("command", "base", "pass") else "left")
    for command, compare in {"train-reward": compare_reward, "align-policy": compare_policy}.items():
        for dtype, quantization, checkpointing in (
            ("bfloat16", "none", False),
            ("bfloat16", "none", True),
            ("float32", "none", False),
            ("bfloat16", "nf4", False),
        ):
            kind = f"{'NF4' if quantization == 'nf4' else dtype}{', checkpointing' if checkpointing else ''}"
            for row in compare(
                options.base,
                dtype=dtype,
                quantization=quantization,
                checkpointing=checkpointing,
                tokens=options.tokens,
            ):
                sizes = (row.planned, row.measured)
                weights = (row.planned_weights, row.measured_weights)
                table.add_row(
                    command,
                    kind,
                    row.name,
                    *(f"{size / 2**20:.1f}" for size in sizes),
                    f"{row.error:+.1%}",
                    *(f"{size / 2**20:.1f}" if size else "" for size in weights),
                )
            print(f"{command}, {kind}: done", file=sys.stderr)
    Console(width=110).print(table)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"Peak resident set of this process, libraries and profiler included: {peak:.2f} GiB")


if __name__ == "__main__":
    main()
