"""`rlhf align-policy` as a straight line: prompts, model and roles, evaluation, training, evaluation.

Differences to NVIDIA's recipe (arXiv 2410.01257): LoRA in place of full fine-tuning, unless `adapter` is
null; reference and reward model are roles on one base; the KL penalty is what the config says; no checkpoint
is chosen by a validation reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from policy.card import write_card
from policy.evaluation.held_out import Answer, compare
from policy.evaluation.run import held_out_answers
from policy.rewards.precheck import check_sources
from policy.save import save_final
from policy.training.build import build_trainer
from policy.training.prompt_data import PromptData, load_data, repeat_warnings
from policy.training.roles import check_start
from policy.training.trainer import PolicyTrainer
from rlhf.config.policy import PolicyConfig
from rlhf.distributed import processes, sharding
from rlhf.models import bases
from rlhf.models.chat import Chat
from rlhf.models.checkpoint_folder import write_shell
from rlhf.models.loading import base_of, fingerprint
from rlhf.runs.after import AfterTraining
from rlhf.runs.folder import RunFolder
from rlhf.runs.inputs import check_base, check_inputs, inputs_of
from rlhf.runs.progress import close_live_lines
from rlhf.tracking.session import last_checkpoint, open_run
from rlhf.tracking.trackers import Trackers


def align_policy(
    config: PolicyConfig,
    *,
    resume: bool = False,
    after: AfterTraining | None = None,
    trackers: Trackers | None = None,
) -> Path:
    """Align a policy and evaluate it on held-out prompts before and after; returns the run folder.

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
    with open_run(config, "align-policy", resume=resume, trackers=trackers) as (run, track, callbacks):
        chat = bases.load_chat(config.model)
        data = load_data(config, chat)
        report_data(config, chat, data, run)
        check_run(config, chat, data, run)
        sharding.configure_loading(config.model.quantization)
        trainer = build_trainer(config, chat, data.training, run, track, callbacks=callbacks)
        check_base(run, config.model.base, fingerprint(base_of(trainer.reference)))

        before = held_out_answers(config, trainer, data.held_out)
        checkpoint = last_checkpoint(run, track, resume=resume)
        write_shell(run.checkpoints, lambda folder: save_final(config, trainer.model, chat, folder))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

        stopped = steps.run("the best weights", lambda: restore_best(trainer))
        steps.run("final/", lambda: save_final(config, trainer.model, chat, run.final))
        answers = steps.run("the held-out prompts", lambda: held_out_answers(config, trainer, data.held_out))
        write_evaluation(config, data, run, steps, before, answers, stopped)
    if after is None:
        steps.finish()
    return config.output


def report_data(config: PolicyConfig, chat: Chat, data: PromptData, run: RunFolder) -> None:
    """Print what was read and dropped, and write drops.json."""
    warnings = repeat_warnings(config, len(data.training))
    for line in (*chat.notes, *data.drops.lines(), *warnings, data.split_sentence()):
        print(line)
    run.write_json("drops.json", data.drops.as_dict())


def check_run(config: PolicyConfig, chat: Chat, data: PromptData, run: RunFolder) -> None:
    """Check base, rewards, start and ranks before any model is loaded, and that a resumed run has the same
    inputs.

    Raises:
        UserError: one of them cannot be used.
    """
    for line in bases.check(config.model, config.adapter):
        print(line)
    check_inputs(run, inputs_of(config, data.drops.digests))
    check_sources(config, chat, data.training + data.held_out)
    check_start(config, chat)
    processes.per_rank(config.rollouts.prompts_per_step, "rollouts.prompts_per_step")


def restore_best(trainer: PolicyTrainer) -> dict[str, Any] | None:
    """In a run that its KL budget stopped, restore the best weights and return why it stopped; else None."""
    control = trainer.kl_control
    if control.stopped is None:
        return None
    control.restore_best(trainer.model)
    close_live_lines()
    print(control.sentence(), flush=True)
    return control.stopped | {"sentence": control.sentence()}


def write_evaluation(
    config: PolicyConfig,
    data: PromptData,
    run: RunFolder,
    steps: AfterTraining,
    before: Sequence[Sequence[Answer]],
    answers: Sequence[Sequence[Answer]] | None,
    stopped: dict[str, Any] | None,
) -> None:
    """Write eval.json, and the model card with its figures.

    Args:
        answers: after training; None where sampling them failed.
        stopped: why the run stopped early, from `restore_best`.
    """
    comparison: dict[str, Any] = {}
    if answers is not None:
        work = partial(compare, data.held_out, before, answers, config.seed)
        comparison = steps.on_main("the comparison", work) or {}
    evaluation = comparison | {"stopped": stopped} | steps.as_dict()
    steps.on_main("eval.json", lambda: run.write_json("eval.json", evaluation))
    if comparison:
        card = partial(write_card, run.final, config, data.training, data.drops, comparison)
        steps.on_main("the model card", card, needs=run.final)
