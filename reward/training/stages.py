"""Train the stages of a reward run, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import TrainerCallback

from reward.save import save_final
from reward.training.batches import Item
from reward.training.build import start_head
from reward.training.data import RewardData, items_of
from reward.training.start import start_from
from reward.training.trainer import HybridRewardTrainer, trainer_arguments
from rlhf.config.reward import START, RewardConfig
from rlhf.distributed import sharding
from rlhf.models.chat import Chat
from rlhf.models.checkpoint_folder import write_shell
from rlhf.models.loading import PeftModel
from rlhf.runs import checkpoints
from rlhf.runs.folder import RunFolder
from rlhf.runs.progress import Progress
from rlhf.tracking.recording import LogUpdate, recorder
from rlhf.tracking.session import last_checkpoint
from rlhf.tracking.trackers import Trackers
from rlhf.training.arguments import settings_of
from rlhf.training.schedule import draw_order, steps_of


def train_stages(
    config: RewardConfig,
    data: RewardData,
    model: PeftModel,
    chat: Chat,
    run: RunFolder,
    track: Trackers,
    *,
    resume: bool,
    callbacks: Sequence[TrainerCallback] = (),
) -> None:
    """Train all stages; each starts from the best weights of the one before it.

    Args:
        resume: continue from the last checkpoint; the stages before it are skipped.
    """
    checkpoint = last_checkpoint(run, track, resume=resume)
    items = {stage.name: items_of(stage, data.training) for stage in config.stages}
    steps = {stage.name: steps_of(stage, len(items[stage.name])) for stage in config.stages}
    if checkpoint is None and config.start is not None:
        start_from(Path(config.start), config, model, chat)
        checkpoints.save_trainable(model, checkpoints.best_file(run.checkpoints, START))
    sharding.shard(model)
    if checkpoint is None and config.start is None and config.head_start:
        start_head(config, items[config.stages[0].name], model, chat)
    write_shell(run.checkpoints, lambda folder: save_final(config, model, chat, folder, data.untrained))
    first = stage_number(config, checkpoint)
    with Progress(sum(steps.values()), "update") as progress:
        for number, stage in enumerate(config.stages):
            if number < first:
                continue
            trainer = stage_trainer(
                config,
                number,
                items[stage.name],
                items_of(stage, data.validation),
                model,
                chat,
                run,
                steps=steps[stage.name],
                step_offset=sum(steps[earlier.name] for earlier in config.stages[:number]),
                record=recorder(run, track, progress),
                callbacks=callbacks,
            )
            resumed = checkpoint is not None and number == first
            trainer.train(resume_from_checkpoint=str(checkpoint) if resumed else None)
            trainer.finish_stage()


def stage_trainer(
    config: RewardConfig,
    number: int,
    items: Sequence[Item],
    validation: Sequence[Item],
    model: PeftModel,
    chat: Chat,
    run: RunFolder,
    *,
    steps: int,
    step_offset: int,
    record: LogUpdate,
    callbacks: Sequence[TrainerCallback],
) -> HybridRewardTrainer:
    """The trainer of a stage.

    Args:
        number: of the stage, counted from 0.
        step_offset: updates of the stages before it.
    """
    stage = config.stages[number]
    arguments = trainer_arguments(
        **settings_of(config, stage.optimizer),
        batch_size=stage.batch_size,
        folder=str(run.checkpoints),
        steps=steps,
        evaluate_every=config.validate_every,
        has_validation=bool(validation),
    )
    return HybridRewardTrainer(
        model,
        arguments,
        chat.trainers_tokenizer(),
        stage=stage,
        items=items,
        order=draw_order(len(items), steps * stage.batch_size, config.seed + number),
        validation=validation,
        tokens_per_batch=config.tokens_per_batch,
        step_offset=step_offset,
        record=record,
        callbacks=callbacks,
    )


def stage_number(config: RewardConfig, checkpoint: Path | None) -> int:
    """The stage, counted from 0, in which training starts or continues."""
    if checkpoint is None:
        return 0
    return [stage.name for stage in config.stages].index(checkpoints.stage_of(checkpoint))
