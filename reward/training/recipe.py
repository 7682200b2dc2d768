"""The steps of `rlhf train-reward`: rows, records, items, stages, evaluation.

Differences from NVIDIA's recipe (arXiv 2410.01257, NeMo-Aligner's documentation):

    - LoRA instead of full fine-tuning
    - the head starts from a ridge regression
    - the prompt of a pair is computed once
    - the chat template of the base instead of `<extra_id_…>` markers
    - both losses can be trained together
    - a hash of the prompt selects the held-out rows; ExPO's factor is chosen on their pairs, not on
    RewardBench
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import TrainerCallback

from reward.card import write_card
from reward.evaluation.after_training import evaluate_final
from reward.evaluation.judging import write_result
from reward.save import save_final
from reward.training.batches import Item
from reward.training.build import build_model
from reward.training.data import RewardData, items_of, load_chat, load_data, untrained_lines
from reward.training.describe import objective_words
from reward.training.expo import expo_apart, extrapolate_or_last, held_pairs
from reward.training.stages import train_stages
from reward.training.start import check_start
from rlhf.config.reward import RewardConfig
from rlhf.core.errors import ConfigError
from rlhf.distributed import processes, sharding
from rlhf.models import bases
from rlhf.models.chat import Chat
from rlhf.models.loading import fingerprint
from rlhf.runs.after import AfterTraining
from rlhf.runs.folder import RunFolder
from rlhf.runs.inputs import check_base, check_inputs, inputs_of
from rlhf.tracking.session import check_session, open_run
from rlhf.tracking.trackers import Trackers
from rlhf.training.schedule import steps_of


def train_reward(
    config: RewardConfig,
    *,
    resume: bool = False,
    after: AfterTraining | None = None,
    trackers: Trackers | None = None,
) -> Path:
    """Train, save and evaluate a reward model; return the run folder.

    Args:
        after: collects the failures of the steps after training for a caller with further such steps, which
            raises them at its end. None: they are raised here.
        trackers: stay open for a caller that sends the report. None: they are opened and closed here.

    Raises:
        UserError: the input is at fault.
        RunError: training failed, or a step after it.
    """
    steps = after or AfterTraining()
    with open_run(config, "train-reward", resume=resume, trackers=trackers) as (run, track, callbacks):
        chat = load_chat(config)
        data = load_data(config, chat)
        print_lines([*chat.notes, *data.drops.lines()])
        run.write_json("drops.json", data.drops.as_dict())
        print_lines(untrained_lines(config, data))
        print_lines(bases.check(config.model, config.adapter, attributes=config.attributes))
        check_start(config, chat)
        check_inputs(run, inputs_of(config, data.drops.digests))
        pairs = held_pairs(config, data)
        check_processes(config)
        sharding.configure_loading(config.model.quantization)
        train_and_save(config, data, pairs, chat, run, steps, track, resume=resume, callbacks=callbacks)
        free_memory()
        result, rows = evaluate_final(config, data, run, steps)
        if result:
            steps.on_main("the model card", lambda: write_card(run.final, config, data, result))
        content = {**result, "training_drops": data.drops.as_dict(), **steps.as_dict()}
        steps.on_main("eval.json", lambda: write_result(run.path / "eval.json", content, rows))
    if after is None:
        steps.finish()
    return config.output


def train_and_save(
    config: RewardConfig,
    data: RewardData,
    pairs: Sequence[Item],
    chat: Chat,
    run: RunFolder,
    steps: AfterTraining,
    track: Trackers,
    *,
    resume: bool,
    callbacks: Sequence[TrainerCallback],
) -> None:
    """Train all stages and write `final/`; nothing keeps the base after this."""
    model = build_model(config, chat)
    check_base(run, config.model.base, fingerprint(model.get_base_model()))
    train_stages(config, data, model, chat, run, track, resume=resume, callbacks=callbacks)
    made_of = extrapolate_or_last(config, pairs, model, chat, run, steps, data.untrained)
    steps.run("final/", lambda: save_final(config, model, chat, run.final, data.untrained, made_of))


def print_lines(lines: Sequence[str]) -> None:
    """Print lines, one after another."""
    for line in lines:
        print(line)


def free_memory() -> None:
    """Free the trained base before the evaluation loads its own: a reference cycle holds it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def check_processes(config: RewardConfig) -> None:
    """Check that the run can be split over its processes.

    Raises:
        ConfigError: a batch size is not a multiple of the number of processes, or ExPO is on and the model is
            sharded.
    """
    for number, stage in enumerate(config.stages):
        processes.per_rank(stage.batch_size, f"stages.{number}.batch_size")
    if config.expo is not None and sharding.is_requested():
        raise ConfigError(
            "expo changes the rank of the adapter, which a sharded model does not allow.",
            allowed="expo in one process, or with DDP",
            fix=expo_apart(),
        )


def dry_run(config: RewardConfig) -> list[str]:
    """A description of the run, without training: the drop report, and each stage's items and updates."""
    check_session(config)
    chat = load_chat(config)
    check_start(config, chat)
    data = load_data(config, chat)
    lines = [*data.drops.lines(), *untrained_lines(config, data)]
    lines += bases.check(config.model, config.adapter, attributes=config.attributes)
    if config.start is not None:
        lines.append(f"starts with the adapter and the head of {config.start}")
    for stage in config.stages:
        items = items_of(stage, data.training)
        lines.append(
            f"stage {stage.name}: {objective_words(stage)}; {len(items)} items, "
            f"{len(items_of(stage, data.validation))} held out; {steps_of(stage, len(items))} updates of "
            f"{stage.batch_size} at {stage.optimizer.learning_rate:g}"
        )
    if config.expo is not None:
        lines.append(
            f"then ExPO from {config.expo.weak} to {config.expo.strong}, its factor chosen on "
            f"{len(held_pairs(config, data))} held-out pairs"
        )
    return lines
