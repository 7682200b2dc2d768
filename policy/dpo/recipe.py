"""The steps of `rlhf train-dpo`: rows, pairs, training, the implicit reward on held-out pairs.

Differences to the paper's DPO (arXiv 2410.01257): LoRA in place of full fine-tuning, and the last weights are
kept, not those of the best checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from policy.dpo.card import save_policy, write_card
from policy.dpo.data import DPOData, TokenizedPair, load_data
from policy.dpo.trainer import PackedDPOTrainer, trainer_arguments
from policy.training.describe import reference_words
from policy.training.roles import attach_start, check_start
from reward.evaluation.benchmarks.breakdown import by_group, shares
from rlhf.config.dpo import DPOConfig
from rlhf.distributed import processes, sharding
from rlhf.models import bases
from rlhf.models.chat import Chat
from rlhf.models.checkpoint_folder import write_shell
from rlhf.models.loading import fingerprint, fit_targets, lora_config
from rlhf.models.trunk import load_trunk
from rlhf.runs.after import AfterTraining
from rlhf.runs.folder import RunFolder
from rlhf.runs.gpu_memory import phase
from rlhf.runs.inputs import check_base, check_inputs, inputs_of
from rlhf.runs.progress import Progress
from rlhf.tracking.recording import recorder
from rlhf.tracking.session import check_session, last_checkpoint, open_run
from rlhf.tracking.trackers import Trackers
from rlhf.training.arguments import settings_of
from rlhf.training.schedule import draw_order, steps_of


def train_dpo(
    config: DPOConfig,
    *,
    resume: bool = False,
    after: AfterTraining | None = None,
    trackers: Trackers | None = None,
) -> Path:
    """Train, save and evaluate a policy; returns the run folder.

    Args:
        after: collects failures after training, for a caller that runs further steps and raises at their end;
            without it, they are raised here.
        trackers: open trackers of a caller that also sends the report; without it, they are opened and closed
            here.

    Raises:
        UserError: the input is at fault.
        RunError: training failed, or a step after it.
    """
    steps = after or AfterTraining()
    with open_run(config, "train-dpo", resume=resume, trackers=trackers) as (run, track, callbacks):
        chat = bases.load_chat(config.model)
        notes = bases.check(config.model, config.adapter)
        data = load_data(config, chat)
        for line in (*chat.notes, *data.drops.lines(), *notes):
            print(line)
        run.write_json("drops.json", data.drops.as_dict())
        check_inputs(run, inputs_of(config, data.drops.digests))
        check_start(config, chat)
        processes.per_rank(config.batch_size, "batch_size")
        sharding.refuse("train-dpo")
        train_and_evaluate(config, data, chat, run, steps, track, callbacks, resume=resume)
    if after is None:
        steps.finish()
    return config.output


def train_and_evaluate(
    config: DPOConfig,
    data: DPOData,
    chat: Chat,
    run: RunFolder,
    steps: AfterTraining,
    track: Trackers,
    callbacks: Sequence[TrainerCallback],
    *,
    resume: bool,
) -> None:
    """Train, write `final/`, and measure the implicit reward on the held-out pairs."""
    updates = steps_of(config, len(data.training))
    with Progress(updates, "update") as progress:
        trainer = build_trainer(config, data, chat, run, track, progress, callbacks)
        checkpoint = last_checkpoint(run, track, resume=resume)
        write_shell(run.checkpoints, lambda folder: save_policy(config, trainer.model, chat, folder))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    steps.run("final/", lambda: save_policy(config, trainer.model, chat, run.final))
    margins = steps.run("the held-out pairs", lambda: trainer.margins(data.validation))
    result = {} if margins is None else evaluation(data.validation, margins)
    if result:
        steps.on_main("the model card", lambda: write_card(config, run.final, result), needs=run.final)
    content = {**result, **steps.as_dict(), "training_drops": data.drops.as_dict()}
    steps.on_main("eval.json", lambda: run.write_json("eval.json", content))


@phase("loading")
def build_trainer(
    config: DPOConfig,
    data: DPOData,
    chat: Chat,
    run: RunFolder,
    track: Trackers,
    progress: Progress,
    callbacks: Sequence[TrainerCallback],
) -> PackedDPOTrainer:
    """Load the base and build the trainer around it."""
    model = load_trunk(config.model)
    check_base(run, config.model.base, fingerprint(model))
    updates = steps_of(config, len(data.training))
    trainer = PackedDPOTrainer(
        model,
        trainer_arguments(
            **settings_of(config, config.optimizer),
            beta=config.beta,
            batch_size=config.batch_size,
            folder=str(run.checkpoints),
            steps=updates,
            validate_every=config.validate_every,
            has_validation=bool(data.validation),
        ),
        fit_targets(model, lora_config(**config.adapter.model_dump())),
        chat.trainers_tokenizer(),
        loss=config.loss,
        packing=config.model.packing,
        pairs=data.training,
        order=draw_order(len(data.training), updates * config.batch_size, config.seed),
        validation=data.validation,
        tokens_per_batch=config.tokens_per_batch,
        record=recorder(run, track, progress),
        callbacks=callbacks,
    )
    attach_start(config, trainer.model, chat)
    return trainer


def evaluation(pairs: Sequence[TokenizedPair], margins: Sequence[float]) -> dict[str, Any]:
    """The content of eval.json: how often the implicit reward prefers the chosen answer; a tie is wrong.

    Returns:
        `{"overall", "count", "intervals": {"overall"}, "subsets": {source: shares}, "groups": {name: {value:
        shares}}, "length_baseline", "margin"}`; empty without pairs. `length_baseline` is the share in which
        the chosen answer has more characters.
    """
    if not pairs:
        return {}
    outcomes = [(margin > 0, pair.chosen.prompt_ids) for margin, pair in zip(margins, pairs, strict=True)]
    overall = shares(outcomes)
    sources = by_group(outcomes, [{"source": pair.source or "held out"} for pair in pairs])
    longer = sum(len(pair.chosen.text) > len(pair.rejected.text) for pair in pairs)
    return {
        "overall": overall["accuracy"],
        "count": len(pairs),
        "intervals": {"overall": overall["ci95"]},
        "subsets": sources["source"],
        "groups": by_group(outcomes, [pair.groups for pair in pairs]),
        "length_baseline": longer / len(pairs),
        "margin": sum(margins) / len(pairs),
    }


def dry_run(config: DPOConfig) -> list[str]:
    """What a run would do: the drop report, pairs and updates."""
    check_session(config)
    chat, notes = bases.load_chat(config.model), bases.check(config.model, config.adapter)
    check_start(config, chat)
    data = load_data(config, chat)
    return [
        *data.drops.lines(),
        *notes,
        f"{len(data.training):,} pairs, {len(data.validation):,} held out; "
        f"{steps_of(config, len(data.training))} updates of {config.batch_size} at "
        f"{config.optimizer.learning_rate:g}; {config.loss} DPO with beta {config.beta:g}",
        f"Reference: {reference_words(config.start)}",
    ]
