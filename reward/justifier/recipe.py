"""What `rlhf train-justifier` does, as a straight line: rows, examples, TRL's SFTTrainer, verdicts on
held-out pairs."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from reward.adapter_card import adapter_card
from reward.justifier.data import JustifierData, load_data
from reward.justifier.evaluation import judge_pairs
from reward.justifier.judge import CARD
from reward.justifier.trainer import JustifierTrainer, trainer_arguments
from rlhf.config.justifier import JustifierConfig
from rlhf.core.errors import ConfigError
from rlhf.core.records import Comparison, Justification
from rlhf.distributed import processes, sharding
from rlhf.kernels.packing_check import decide_packing
from rlhf.models import bases
from rlhf.models.card import CARD as README
from rlhf.models.chat import Chat
from rlhf.models.checkpoint_folder import write_shell
from rlhf.models.forwards import enable_packed_logprobs
from rlhf.models.loading import PeftModel, fingerprint, lora_config, with_adapter
from rlhf.models.saving import base_facts, write_adapter_folder
from rlhf.models.trunk import load_trunk
from rlhf.runs.after import AfterTraining
from rlhf.runs.folder import RunFolder
from rlhf.runs.inputs import check_base, check_inputs, inputs_of
from rlhf.runs.progress import Progress
from rlhf.tracking.recording import recorder
from rlhf.tracking.session import check_session, last_checkpoint, open_run
from rlhf.tracking.trackers import Trackers
from rlhf.training.arguments import settings_of
from rlhf.training.schedule import draw_order, steps_of


def train_justifier(config: JustifierConfig, *, resume: bool = False) -> dict[str, Any]:
    """Train, save and evaluate a justifier; returns the evaluation, which is also in eval.json.

    Raises:
        UserError: the input is at fault.
        RunError: training failed.
    """
    with open_run(config, "train-justifier", resume=resume) as (run, track, callbacks):
        chat = bases.load_chat(config.model)
        notes = bases.check(config.model, config.adapter)
        data = load_data(config, chat)
        for line in (*chat.notes, *data.drops.lines(), *notes):
            print(line)
        run.write_json("drops.json", data.drops.as_dict())
        check_inputs(run, inputs_of(config, data.drops.digests))
        if (
            processes.per_rank(config.batch_size, "batch_size") % config.micro_batch_size
            or sharding.is_requested()
        ):
            raise ConfigError(
                "train-justifier runs in one process or with DDP; each process takes whole micro-batches.",
                allowed="batch_size / processes = a multiple of micro_batch_size",
                fix="micro_batch_size=1",
            )
        train(config, data, chat, run, track, callbacks, resume=resume)
        gc.collect()  # a reference cycle holds the base, and the judge loads its own
        with AfterTraining() as after:
            measured = after.run(
                "the evaluation",
                lambda: processes.from_main(lambda: judge_held_out(run.final, data.held_out)),
            )
            result = measured or {}
            content = {**result, **after.as_dict(), "training_drops": data.drops.as_dict()}
            after.on_main("eval.json", lambda: run.write_json("eval.json", content))
    return result


def train(
    config: JustifierConfig,
    data: JustifierData,
    chat: Chat,
    run: RunFolder,
    track: Trackers,
    callbacks: Sequence[TrainerCallback],
    *,
    resume: bool,
) -> None:
    """Train, and leave the adapter in `final/`."""
    checkpoint = last_checkpoint(run, track, resume=resume)
    model = build_model(config)
    check_base(run, config.model.base, fingerprint(model.get_base_model()))
    write_shell(run.checkpoints, lambda folder: save(config, model, chat, folder))
    steps = steps_of(config, len(data.training))
    with Progress(steps, "update") as progress:
        trainer = JustifierTrainer(
            model,
            trainer_arguments(
                **settings_of(config, config.optimizer),
                batch_size=config.batch_size,
                micro_batch_size=config.micro_batch_size,
                folder=str(run.checkpoints),
                steps=steps,
            ),
            chat.trainers_tokenizer(),
            examples=data.training,
            order=draw_order(len(data.training), steps * config.batch_size, config.seed),
            record=recorder(run, track, progress),
            callbacks=callbacks,
        )
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    save(config, model, chat, run.final)


def build_model(config: JustifierConfig) -> PeftModel:
    """The base with a fresh adapter and packed log-probabilities.

    Raises:
        ModelError: the base changes its logits after the head, see `require_plain_logits`.
    """
    model = load_trunk(config.model)
    decide_packing(model, wanted=config.model.packing)
    enable_packed_logprobs(model, temperature=1.0)
    return with_adapter(model, lora_config(**config.adapter.model_dump()))


def save(config: JustifierConfig, model: PeftModel, chat: Chat, folder: Path) -> None:
    """Write adapter, tokenizer and card under their final name only when whole; all processes must call."""
    card = {
        **base_facts(config.model, model, chat),
        "max_new_tokens": config.max_new_tokens,
    }
    readme = adapter_card(
        config.model,
        config.output / "final",
        title="Pairwise Justifier",
        summary="It compares two responses to a prompt: it writes reasons and then which response is better "
        "(arXiv 2410.01257).",
        usage=f"rlhf evaluate-reward {config.output / 'final'} --form justifier --data judgebench",
        sources=[source.path for source in config.data.justifications],
    )
    write_adapter_folder(folder, model, chat, lambda: {CARD: json.dumps(card, indent=1), README: readme})


def judge_held_out(folder: Path, records: Sequence[Justification]) -> dict[str, Any]:
    """The result of `judge_pairs` on held-out pairs; empty without any."""
    if not records:
        return {}
    result, _ = judge_pairs(folder, [_comparison(record) for record in records])
    return result


def _comparison(record: Justification) -> Comparison:
    chosen, rejected = record.response_1, record.response_2
    if record.strength > 0:
        chosen, rejected = rejected, chosen
    return Comparison(
        record.prompt,
        chosen,
        rejected,
        subset=record.source or "held out",
        strength=abs(record.strength),
        groups=record.groups,
    )


def dry_run(config: JustifierConfig) -> list[str]:
    """What a run would do: the drop report, examples and updates."""
    check_session(config)
    chat, notes = bases.load_chat(config.model), bases.check(config.model, config.adapter)
    data: JustifierData = load_data(config, chat)
    steps = steps_of(config, len(data.training))
    return [
        *data.drops.lines(),
        *notes,
        f"{len(data.training)} justifications, {len(data.held_out)} pairs held out; {steps} updates of "
        f"{config.batch_size} at {config.optimizer.learning_rate:g}",
    ]
