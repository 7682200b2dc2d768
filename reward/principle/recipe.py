"""The steps of `rlhf train-principle`: rows, items, training, evaluation on held-out prompts."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from reward.adapter_card import adapter_card
from reward.evaluation.benchmarks.breakdown import by_group, shares
from reward.principle.items import FULFILMENT, PrincipleData, load_data
from reward.principle.question import answer_head, answer_ids
from reward.principle.scorer import CARD, PrincipleScorer, read_principle_model
from reward.principle.trainer import PrincipleTrainer
from reward.training.trainer import trainer_arguments
from rlhf.adapters.start import check_adapter, start_from
from rlhf.config.principle import PrincipleConfig
from rlhf.config.reward import StageConfig
from rlhf.core.records import Conversation, Message, Principle
from rlhf.distributed import processes, sharding
from rlhf.kernels.packing_check import decide_packing
from rlhf.models import bases
from rlhf.models.card import CARD as README
from rlhf.models.chat import Chat
from rlhf.models.checkpoint_folder import write_shell
from rlhf.models.forwards import enable_packed_scores
from rlhf.models.loading import PeftModel, fingerprint, lora_config, with_adapter
from rlhf.models.names import HEAD
from rlhf.models.saving import base_facts, write_adapter_folder
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

STAGE = "principle"


def train_principle(config: PrincipleConfig, *, resume: bool = False) -> dict[str, Any]:
    """Train, save and evaluate a principle model; returns the evaluation, which is also in eval.json.

    Raises:
        UserError: the input is at fault.
        RunError: training failed.
    """
    with open_run(config, "train-principle", resume=resume) as (run, track, callbacks):
        chat = load_chat(config)
        notes = bases.check(config.model, config.adapter)
        data = load_data(config, chat)
        for line in (*chat.notes, *data.drops.lines(), *notes):
            print(line)
        run.write_json("drops.json", data.drops.as_dict())
        check_inputs(run, inputs_of(config, data.drops.digests))
        processes.per_rank(config.batch_size, "batch_size")
        sharding.refuse("train-principle")
        train(config, data, chat, run, track, callbacks, resume=resume)
        gc.collect()  # a reference cycle holds the base, and the scorer loads its own
        with AfterTraining() as after:
            measured = after.run(
                "the evaluation",
                lambda: processes.from_main(lambda: evaluate(config, run.final, data.held_out)),
            )
            result = measured or {}
            content = {**result, **after.as_dict(), "training_drops": data.drops.as_dict()}
            after.on_main("eval.json", lambda: run.write_json("eval.json", content))
    return result


def load_chat(config: PrincipleConfig) -> Chat:
    """The tokenizer and template of the base; a start must have been trained with the same.

    Raises:
        UserError: there is no such base, Yes and No begin alike, model.max_length is too large, or the start
            does not fit.
    """
    chat = bases.load_chat(config.model)
    answer_ids(chat)
    if config.start is not None:
        start = read_principle_model(Path(config.start))
        start.check_template(chat)
        check_adapter(Path(config.start), start, config.adapter)
    return chat


@phase("loading")
def build_model(config: PrincipleConfig, chat: Chat) -> PeftModel:
    """The base with a fresh adapter, a frozen head for Yes against No, and packed scores.

    Raises:
        ModelError: the base cannot be loaded, or its logits are not plain.
    """
    model = load_trunk(config.model)
    decide_packing(model, wanted=config.model.packing)
    enable_packed_scores(model)
    head = answer_head(model, chat)
    wrapped = with_adapter(model, lora_config(**config.adapter.model_dump()))
    model.add_module(HEAD, head)  # after the adapter, which would otherwise take it for one of its layers
    if config.start is not None:
        folder = Path(config.start)
        start_from(folder, read_principle_model(folder), wrapped, chat)
    return wrapped


def train(
    config: PrincipleConfig,
    data: PrincipleData,
    chat: Chat,
    run: RunFolder,
    track: Trackers,
    callbacks: Sequence[TrainerCallback],
    *,
    resume: bool,
) -> None:
    """Train, and leave the best adapter in `final/`."""
    checkpoint = last_checkpoint(run, track, resume=resume)
    model = build_model(config, chat)
    check_base(run, config.model.base, fingerprint(model.get_base_model()))
    write_shell(run.checkpoints, lambda folder: save(config, model, chat, folder))
    steps = steps_of(config, len(data.training))
    labels = {"id2label": {0: FULFILMENT}, "label2id": {FULFILMENT: 0}}
    model.config.update(labels)
    with Progress(steps, "update") as progress:
        trainer = PrincipleTrainer(
            model,
            trainer_arguments(
                **settings_of(config, config.optimizer),
                batch_size=config.batch_size,
                folder=str(run.checkpoints),
                steps=steps,
                evaluate_every=config.validate_every,
                has_validation=bool(data.validation),
            ),
            chat.trainers_tokenizer(),
            stage=StageConfig(name=STAGE, regression_weight=1.0),
            items=data.training,
            order=draw_order(len(data.training), steps * config.batch_size, config.seed),
            validation=data.validation,
            tokens_per_batch=config.tokens_per_batch,
            step_offset=0,
            record=recorder(run, track, progress),
            callbacks=callbacks,
        )
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        trainer.finish_stage()
    save(config, model, chat, run.final)


def save(config: PrincipleConfig, model: PeftModel, chat: Chat, folder: Path) -> None:
    """Write adapter, tokenizer and card under their final name only when whole; all processes must call."""
    card = {
        **base_facts(config.model, model, chat),
        "packing": config.model.packing,
        "trained_length": config.model.max_length,
        "max_length": model.config.get_text_config().max_position_embeddings,
    }
    readme = adapter_card(
        config.model,
        config.output / "final",
        title="Principle model",
        summary="It scores a response by a principle in words: logit(Yes) - logit(No) of the next token "
        "after the question whether the response satisfies the principle.",
        usage=f'rlhf score {config.output / "final"} --principle "The response is one sentence." --input '
        "in.jsonl --output out.jsonl",
        sources=[source.path for source in config.data.principles],
    )
    write_adapter_folder(folder, model, chat, lambda: {CARD: json.dumps(card, indent=1), README: readme})


def evaluate(config: PrincipleConfig, folder: Path, records: Sequence[Principle]) -> dict[str, Any]:
    """How often the sign of the score says whether a principle is fulfilled, on held-out records.

    Returns:
        `{"count", "accuracy", "ci95", "majority", "fulfilled": {"yes": shares, "no": shares}, "groups":
        {name: {value: shares}}}`; `majority` is what always giving the more frequent answer gets; groups are
        those of the records, such as domain and language. Empty without records.
    """
    if not records:
        return {}
    by_response: dict[Conversation, list[Principle]] = {}
    for record in records:
        response = (*record.prompt, Message("assistant", record.response))
        by_response.setdefault(response, []).append(record)
    principles = list(dict.fromkeys(record.principle for record in records))
    scorer = PrincipleScorer.load(folder, principles, tokens_per_batch=config.tokens_per_batch)
    scores = scorer.score_each(
        [(response, [r.principle for r in members]) for response, members in by_response.items()]
    )
    scored = [
        (record, (value > 0) == record.fulfilled)
        for members, values in zip(by_response.values(), scores, strict=True)
        for record, value in zip(members, values, strict=True)
    ]
    outcomes = [(right, record.prompt) for record, right in scored]
    sides = {
        name: [
            outcome
            for outcome, (record, _) in zip(outcomes, scored, strict=True)
            if record.fulfilled == fulfilled
        ]
        for name, fulfilled in (("yes", True), ("no", False))
    }
    return {
        **shares(outcomes),
        "majority": max(map(len, sides.values())) / len(outcomes),
        "fulfilled": {name: shares(part) for name, part in sides.items()},
        "groups": by_group(outcomes, [record.groups for record, _ in scored]),
    }


def dry_run(config: PrincipleConfig) -> list[str]:
    """What a run would do: the drop report, items and updates."""
    check_session(config)
    chat, notes = load_chat(config), bases.check(config.model, config.adapter)
    data = load_data(config, chat)
    steps = steps_of(config, len(data.training))
    return [
        *data.drops.lines(),
        *notes,
        f"{len(data.training)} responses with principles, {len(data.validation)} held out; {steps} updates "
        f"of {config.batch_size} at {config.optimizer.learning_rate:g}",
    ]
