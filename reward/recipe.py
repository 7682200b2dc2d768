"""What `rlhf train-reward` does, as a straight line: rows, records, items, stages, evaluation.

Departures from NVIDIA's recipe (arXiv 2410.01257, NeMo-Aligner's documentation): LoRA in place of full fine-tuning; the
head starts from a ridge regression; the prompt of a pair is computed once; the chat template of the base in place of
`<extra_id_…>` markers; the two losses may also be trained together; held-out rows are split off by a hash of the prompt,
and ExPO's factor is chosen on their pairs, not on RewardBench.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, set_seed

from reward.batches import Item
from reward.card import write_card
from reward.data import RewardData, items_of, load_chat, load_data, steps_of
from reward.evaluation.benchmark import evaluate
from reward.evaluation.judging import CHUNK, write_result
from reward.evaluation.self_check import ScorerLike
from reward.evaluation.sharded_scorer import ShardedScorer
from reward.expo import expo_apart, extrapolate_stages, held_pairs
from reward.head_start import fit_head
from reward.save import save_final
from reward.scorer import Scorer
from reward.start import check_start, start_from
from reward.trainer import HybridRewardTrainer, Record, trainer_arguments
from rlhf.config.reward import START, RewardConfig
from rlhf.core.errors import ConfigError
from rlhf.core.records import Comparison
from rlhf.data.drops import DropReport
from rlhf.data.load import load_comparisons
from rlhf.distributed import processes, sharding
from rlhf.distributed.sharding import full_tensor
from rlhf.distributed.trainer_mixin import draw_order
from rlhf.kernels.fused import choose_layers
from rlhf.kernels.packing_check import decide_packing
from rlhf.models import bases
from rlhf.models.chat import Chat
from rlhf.models.checkpoint_folder import write_shell
from rlhf.models.forwards import enable_packed_scores
from rlhf.models.loading import (
    PeftModel,
    fingerprint,
    load_classifier,
    lora_config,
    reward_head,
    set_head,
    with_adapter,
)
from rlhf.runs import checkpoints
from rlhf.runs.after import AfterTraining
from rlhf.runs.folder import RunFolder
from rlhf.runs.gpu_memory import phase
from rlhf.runs.inputs import Input, check_inputs, inputs_of
from rlhf.runs.progress import Progress
from rlhf.tracking.callbacks import load_callbacks
from rlhf.tracking.trackers import Trackers, tracking


def train_reward(
    config: RewardConfig,
    *,
    resume: bool = False,
    after: AfterTraining | None = None,
    trackers: Trackers | None = None,
) -> Path:
    """Train, save and evaluate a reward model; returns the run folder.

    Args:
        after: collects what fails after training, for a caller that goes on with such steps and raises it at their end;
            without it, it is raised here.
        trackers: stay open for a caller that sends the report; without it, they are opened and closed here.

    Raises:
        UserError: the input is at fault.
        RunError: training failed, or a step after it.
    """
    steps = after or AfterTraining()
    callbacks = load_callbacks(config.callbacks)
    if config.threads:
        torch.set_num_threads(config.threads)
    set_seed(config.seed)
    with (
        RunFolder.create(config.output, config, resume=resume, command="train-reward") as run,
        tracking(trackers, config) as track,
    ):
        chat = load_chat(config)
        data = load_data(config, chat)
        for line in (*chat.notes, *data.drops.lines()):
            print(line)
        run.write_json("drops.json", data.drops.as_dict())
        for line in check_base(config):
            print(line)
        check_start(config, chat)
        check_inputs(run, inputs_of(config, data.drops.digests))
        pairs = held_pairs(config, data)
        check_processes(config)
        sharding.configure_loading(config.model.quantization)
        train_and_save(config, data, pairs, chat, run, steps, track, resume=resume, callbacks=callbacks)
        gc.collect()  # a reference cycle holds the base, and the scorer loads its own
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
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
    """Train all stages, and leave the model in `final/`; the base is freed at the end."""
    model = build_model(config, chat)
    check_inputs(run, {"model.base": Input(config.model.base, fingerprint(model.get_base_model()))})
    train_stages(config, data, model, chat, run, track, resume=resume, callbacks=callbacks)
    made_of = extrapolate_or_last(config, pairs, model, chat, run, steps)
    steps.run("final/", lambda: save_final(config, model, chat, run.final, extrapolated=made_of))


def extrapolate_or_last(
    config: RewardConfig,
    pairs: Sequence[Item],
    model: PeftModel,
    chat: Chat,
    run: RunFolder,
    steps: AfterTraining,
) -> dict[str, object] | None:
    """Extrapolate where the config wants it, and return what the model is made of; where that fails the last stage stands."""
    expo = config.expo
    if expo is None:
        return None
    made_of = steps.run("ExPO", lambda: extrapolate_stages(config, expo, pairs, model, chat, run))
    if made_of is None:
        last = checkpoints.best_file(run.checkpoints, config.stages[-1].name)
        steps.run("the last stage's weights", lambda: checkpoints.load_trainable(model, last))
    return made_of


def check_processes(config: RewardConfig) -> None:
    """Make sure that the run can be split over its processes.

    Raises:
        ConfigError: a batch size is not a multiple of the number of processes, or a step needs the whole model in one process.
    """
    for number, stage in enumerate(config.stages):
        processes.per_rank(stage.batch_size, f"stages.{number}.batch_size")
    if config.expo is not None and sharding.is_requested():
        raise ConfigError(
            "expo tries weights of other ranks, and the model is sharded.",
            allowed="expo in one process, or with DDP",
            fix=expo_apart(),
        )


def check_base(config: RewardConfig) -> list[str]:
    """Check before weights are loaded that the base can be a reward model; returns what its user should know.

    Raises:
        ModelError: it cannot.
    """
    model = config.model
    return bases.examine(
        bases.read_config(model.base, model.revision),
        model.base,
        revision=model.revision,
        quantization=model.quantization,
        adapter=config.adapter.model_dump(),
        attributes=config.attributes,
    )


@phase("loading")
def build_model(config: RewardConfig, chat: Chat) -> PeftModel:
    """The base as a classifier, with a fresh adapter and head."""
    model = load_classifier(
        config.model.base,
        attributes=config.attributes,
        revision=config.model.revision,
        dtype=config.model.dtype,
        quantization=config.model.quantization,
        pad_id=chat.pad_id,
        fast_layers=config.model.fast_layers,
    )
    if torch.cuda.is_available() and config.model.quantization == "none" and not sharding.is_requested():
        model = model.to("cuda")
    choose_layers(model, config.model.fused_kernels)
    decide_packing(model, wanted=config.model.packing)
    enable_packed_scores(model)
    return with_adapter(model, lora_config(**config.adapter.model_dump(), head=True))


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
    """Run the stages one after another; each hands its best weights to the next."""
    checkpoint, passed_over = (
        processes.from_main(lambda: checkpoints.latest(run.checkpoints)) if resume else (None, [])
    )
    for line in passed_over:
        print(line)
    track.open(run)
    run.truncate(checkpoints.step_of(checkpoint) if checkpoint else 0)
    reached = checkpoints.stage_of(checkpoint) if checkpoint else None
    items = {stage.name: items_of(stage, data.training) for stage in config.stages}
    steps = {stage.name: steps_of(stage, len(items[stage.name])) for stage in config.stages}
    if checkpoint is None and config.start is not None:
        start_from(Path(config.start), config, model, chat)
        checkpoints.save_trainable(model, checkpoints.best_file(run.checkpoints, START))
    sharding.shard(model)
    if checkpoint is None and config.start is None and config.head_start:
        start_head(config, items[config.stages[0].name], model, chat)
    write_shell(run.checkpoints, lambda folder: save_final(config, model, chat, folder))
    with Progress(sum(steps.values()), "update") as progress:
        offset = 0
        for number, stage in enumerate(config.stages):
            if reached in (None, stage.name):
                here, held = items[stage.name], items_of(stage, data.validation)
                trainer = HybridRewardTrainer(
                    model,
                    trainer_arguments(
                        **stage.optimizer.model_dump(),
                        batch_size=stage.batch_size,
                        folder=str(run.checkpoints),
                        steps=steps[stage.name],
                        dtype=config.model.dtype,
                        seed=config.seed,
                        evaluate_every=config.validate_every,
                        save_every=config.save_every,
                        has_validation=bool(held),
                        gradient_checkpointing=config.model.gradient_checkpointing,
                    ),
                    chat.trainers_tokenizer(),
                    stage=stage,
                    items=here,
                    order=draw_order(len(here), steps[stage.name] * stage.batch_size, config.seed + number),
                    validation=held,
                    tokens_per_batch=config.tokens_per_batch,
                    step_offset=offset,
                    record=recorder(run, track, progress),
                    callbacks=callbacks,
                )
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
                trainer.finish_stage()
                reached = checkpoint = None
            offset += steps[stage.name]


def start_head(config: RewardConfig, first: Sequence[Item], model: PeftModel, chat: Chat) -> None:
    """Fit the head on items of the first stage; a head that is trained already stays."""
    if full_tensor(reward_head(model).weight).any():
        return
    order = draw_order(len(first), min(config.head_start, len(first)), config.seed)
    print(f"Fitting the head on {len(order)} items, before the adapter is trained.")
    hidden = model.config.get_text_config().hidden_size
    with torch.random.fork_rng(devices=[]):  # its own start is no draw of the run
        fitted = torch.nn.Linear(hidden, len(config.attributes), bias=False)
    torch.nn.init.zeros_(fitted.weight)
    with Progress(len(order), "item") as progress:
        fit_head(
            model,
            fitted,
            [first[i] for i in order],
            budget=config.tokens_per_batch,
            pad_id=chat.pad_id,
            done=progress.update,
        )
    set_head(model, fitted.weight.detach())


def recorder(run: RunFolder, track: Trackers, progress: Progress) -> Record:
    """Figures to metrics.jsonl and the trackers, and the few that people watch to the progress line."""
    shown = {"loss": "loss/total", "accuracy": "reward/accuracy"}

    def record(step: int, figures: Any) -> None:
        run.metrics(step, figures)
        track.metrics(step, figures)
        if "loss/total" in figures:
            progress.update(
                step, **{short: figures[name] for short, name in shown.items() if name in figures}
            )

    return record


def evaluate_final(
    config: RewardConfig, data: RewardData, run: RunFolder, steps: AfterTraining
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Score the benchmark and the held-out pairs (by source) with the model as it was saved; what fails is left out."""

    def load() -> ScorerLike:
        loaded = Scorer.load(run.final, tokens_per_batch=config.tokens_per_batch)
        return loaded if processes.world_size() == 1 else ShardedScorer(loaded)

    scorer = steps.run("loading final/", load)
    if scorer is None:
        return {}, []
    chunk = CHUNK * processes.world_size()

    def judge(what: str, pairs: Sequence[Comparison], drops: DropReport | None) -> Any:
        print(f"Scoring {what}.")
        with Progress(len(pairs), "pair") as progress:
            result, rows = evaluate(
                pairs, scorer, drops=drops, on_progress=progress.update, chunk=chunk, strict=False
            )
        check = result["self_check"]
        if check.get("verdict") == "batch":
            steps.fail(f"the self-check on {what}", check["sentence"])
        return result, rows

    def benchmark(path: str) -> Any:
        comparisons, drops = load_comparisons(path)
        result, rows = judge("the benchmark", comparisons, drops)
        return {**result, "drops": drops.as_dict()}, rows

    held: tuple[dict[str, Any], list[dict[str, Any]]] = {}, []
    if data.held_out:
        name = "the held-out pairs"
        held = steps.run(name, lambda: judge(name, data.held_out, None)) or held
    if config.benchmark is None:
        return held
    path = config.benchmark
    result, rows = steps.run("the benchmark", lambda: benchmark(path)) or ({}, [])
    return ({**result, "held_out": held[0]} if result or held[0] else {}), [*rows, *held[1]]


def dry_run(config: RewardConfig) -> list[str]:
    """What a run would do, without doing it: the drop report, and each stage's items and updates."""
    load_callbacks(config.callbacks)
    Trackers(config)  # checks that they are installed
    chat = load_chat(config)
    check_start(config, chat)
    data = load_data(config, chat)
    lines = [*data.drops.lines(), *check_base(config)]
    if config.start is not None:
        lines.append(f"begins with the adapter and the head of {config.start}")
    for stage in config.stages:
        items = items_of(stage, data.training)
        terms = {
            "regression": stage.regression_weight,
            f"{stage.preference_loss} BT": stage.preference_weight,
        }
        if stage.centering_weight:
            terms["centring"] = stage.centering_weight
        objective = " + ".join(f"{weight:g} x {name}" for name, weight in terms.items() if weight)
        lines.append(
            f"stage {stage.name}: {objective}; {len(items)} items, {len(items_of(stage, data.validation))} held "
            f"out; {steps_of(stage, len(items))} updates of {stage.batch_size} at {stage.optimizer.learning_rate:g}"
        )
    if config.expo is not None:
        lines.append(
            f"then ExPO from {config.expo.weak} to {config.expo.strong}, its factor chosen on "
            f"{len(held_pairs(config, data))} held-out pairs"
        )
    return lines
