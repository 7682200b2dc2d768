"""What `rlhf align-policy` does, as a straight line: prompts, base, roles, engine, updates, before and after.

Departures from NVIDIA's recipe (arXiv 2410.01257): LoRA in place of full fine-tuning, unless `adapter` is null; the reference and the
reward model are roles on one base; the KL penalty is what the config names; checkpoints are not chosen by a validation reward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback, set_seed

from policy.card import write_card
from policy.describe import describe_algorithm, describe_rewards, describe_roles
from policy.evaluation.held_out import Answer, answer_prompts, compare
from policy.rewards.build import RewardBuilder
from policy.rewards.precheck import check_sources
from policy.roles import attach_roles, check_start
from policy.rollouts.overlap import LAG, OverlappedRollouts
from policy.rollouts.paged_engine import PagedEngine
from policy.rollouts.probe import EngineProbe
from policy.rollouts.protocol import RolloutEngine, Sampling, seed_of
from policy.rollouts.server_engine import ServerEngine
from policy.rollouts.server_setup import engine_of_servers
from policy.rollouts.transformers_engine import TransformersEngine
from policy.rollouts.vllm_arguments import EngineSettings
from policy.save import save_final
from policy.trainer import PolicyTrainer, Roles, trainer_arguments
from policy.update.gathering import gather_probes
from rlhf.config.policy import PolicyConfig
from rlhf.config.rollouts import ImportanceConfig
from rlhf.core.errors import ConfigError, DataError, RefusalError
from rlhf.core.formats import effective_dtype
from rlhf.core.records import Prompt
from rlhf.data.drops import DropReport
from rlhf.data.load import load_prompts
from rlhf.data.split import fraction
from rlhf.distributed import processes, sharding, zero
from rlhf.distributed.trainer_mixin import draw_order
from rlhf.kernels.fused import choose_layers
from rlhf.kernels.packing_check import decide_packing
from rlhf.models import bases
from rlhf.models.chat import Chat
from rlhf.models.chat.control_tokens import SPELLED
from rlhf.models.chat.same_prompts import SAME_PROMPT, digest_of
from rlhf.models.checkpoint_folder import write_shell
from rlhf.models.context import require_context
from rlhf.models.embedded import resolve_base
from rlhf.models.loading import LoraConfig, base_of, fingerprint, fit_targets, load_causal, lora_config
from rlhf.runs import checkpoints
from rlhf.runs.after import AfterTraining
from rlhf.runs.folder import RunFolder
from rlhf.runs.gpu_memory import phase
from rlhf.runs.inputs import Input, check_inputs, inputs_of
from rlhf.runs.progress import Progress, close_live_lines
from rlhf.tracking.callbacks import load_callbacks
from rlhf.tracking.trackers import Trackers, tracking

TOO_LONG = "longer than data.max_prompt_tokens"
"""Why a prompt is dropped whose ids are too many."""
HELD_OUT_SHARE = 0.2
"""Of the prompts, at most this share is held out for the evaluation, however many it asks for."""


@dataclass(frozen=True)
class PromptData:
    """Prompts to train on, prompts held out, and what was left out."""

    training: list[Prompt]
    held_out: list[Prompt]
    drops: DropReport

    def split_sentence(self) -> str:
        """How many prompts are trained on, and how many only evaluate."""
        return (
            f"{len(self.training):,} prompts to train on, {len(self.held_out):,} held out for the evaluation"
        )


def align_policy(
    config: PolicyConfig,
    *,
    resume: bool = False,
    after: AfterTraining | None = None,
    trackers: Trackers | None = None,
) -> Path:
    """Align a policy, and answer held-out prompts before and after; returns the run folder.

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
        RunFolder.create(config.output, config, resume=resume, command="align-policy") as run,
        tracking(trackers, config) as track,
    ):
        chat = load_chat(config)
        data = load_data(config, chat)
        for line in (
            *chat.notes,
            *data.drops.lines(),
            *repeats(config, len(data.training)),
            data.split_sentence(),
        ):
            print(line)
        run.write_json("drops.json", data.drops.as_dict())
        for line in check_base(config):
            print(line)
        check_inputs(run, inputs_of(config, data.drops.digests))
        check_sources(config, chat, data.training + data.held_out)
        check_start(config, chat)
        processes.per_rank(config.rollouts.prompts_per_step, "rollouts.prompts_per_step")
        sharding.configure_loading(config.model.quantization)
        trainer = build_trainer(config, chat, data.training, run, track, callbacks=callbacks)
        check_inputs(run, {"model.base": Input(config.model.base, fingerprint(base_of(trainer.reference)))})
        evaluation = Evaluation(config, trainer, data.held_out)
        before = evaluation.answers()
        checkpoint, passed_over = (
            processes.from_main(lambda: checkpoints.latest(run.checkpoints)) if resume else (None, [])
        )
        for line in passed_over:
            print(line)
        write_shell(run.checkpoints, lambda folder: save_final(config, trainer.model, chat, folder))
        track.open(run)
        run.truncate(checkpoints.step_of(checkpoint) if checkpoint else 0)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        stopped = steps.run("the best weights", lambda: keep_best(trainer))
        steps.run("final/", lambda: save_final(config, trainer.model, chat, run.final))
        answers = steps.run("the held-out prompts", evaluation.answers)

        compared: dict[str, Any] = {}
        if answers is not None:
            work = partial(compare, data.held_out, before, answers, config.seed)
            compared = steps.on_main("the comparison", work) or {}
        evaluated = compared | {"stopped": stopped} | steps.as_dict()
        steps.on_main("eval.json", lambda: run.write_json("eval.json", evaluated))
        if compared and run.final.exists():
            card = partial(write_card, run.final, config, data.training, data.drops, compared)
            steps.on_main("the model card", card)
    if after is None:
        steps.finish()
    return config.output


def load_chat(config: PolicyConfig) -> Chat:
    """The tokenizer and template of the base.

    Raises:
        UserError: there is no such base, or model.max_length is beyond its context.
    """
    model = config.model
    require_context(model.base, model.revision, model.max_length)
    return Chat.of(model)


def check_base(config: PolicyConfig) -> list[str]:
    """Check before weights are loaded that the base can be a policy; returns what its user should know.

    Raises:
        ModelError: it cannot.
    """
    model = config.model
    return bases.examine(
        bases.read_config(model.base, model.revision),
        model.base,
        revision=model.revision,
        quantization=model.quantization,
        adapter=None if config.adapter is None else config.adapter.model_dump(),
        attributes=None,
    )


def load_data(config: PolicyConfig, chat: Chat) -> PromptData:
    """Prompts of all sources, without those that are too long or that the chat template refuses; `evaluation.prompts` are held out.

    Which ones, a hash of the prompt decides: not the seed, and not the order.

    Raises:
        ConfigError: prompt and answer together do not fit.
        DataError: no prompts are left to train on, or none to hold out.
    """
    longest = config.data.max_prompt_tokens + config.rollouts.max_new_tokens
    if longest > config.model.max_length:
        raise ConfigError(
            f"data.max_prompt_tokens + rollouts.max_new_tokens = {longest}.",
            allowed=f"at most model.max_length = {config.model.max_length}",
            fix=f"model.max_length={longest} if the base's context allows it; else lower one of the two",
        )
    prompts, drops = load_prompts(config.data.prompts, seed=config.seed)
    fitting = []
    shortest_dropped: int | None = None
    seen: set[bytes] = set()
    for prompt, ids in zip(prompts, chat.prompts_ids(one.messages for one in prompts), strict=True):
        if isinstance(ids, RefusalError):
            drops.drop(ids.reason, prompt.source or "a prompt")
        elif len(ids) > config.data.max_prompt_tokens:
            drops.drop(TOO_LONG, prompt.source or "a prompt")
            shortest_dropped = min(shortest_dropped or len(ids), len(ids))
        elif (digest := digest_of(ids)) in seen:
            drops.drop(SAME_PROMPT, prompt.source or "a prompt")
        else:
            seen.add(digest)
            fitting.append(prompt)
    if spelled := sum(chat.spells_control_tokens(prompt.messages) for prompt in fitting):
        drops.notes[SPELLED] += spelled
    count = min(config.evaluation.prompts, max(1, int(HELD_OUT_SHARE * len(fitting))))
    ranked = sorted(fitting, key=lambda prompt: fraction(prompt.messages, "evaluation"))
    kept_back = ranked[:count]
    withheld = {prompt.messages for prompt in kept_back}
    training = [prompt for prompt in fitting if prompt.messages not in withheld]
    if not training or not kept_back:
        raise DataError(
            f"{len(fitting)} prompts are left, and some are needed to train on and some to hold out.\n"
            + "\n".join(drops.lines()),
            allowed="at least two prompts",
            fix=_more_prompts(drops, shortest_dropped),
        )
    return PromptData(training, kept_back, drops)


def _more_prompts(drops: DropReport, shortest_dropped: int | None) -> str:
    """The fix for too few prompts, by the most frequent reason for which prompts were dropped."""
    reason = drops.reasons.most_common(1)[0][0] if drops.reasons else None
    if reason == TOO_LONG and shortest_dropped is not None:
        return f"the shortest dropped prompt has {shortest_dropped} tokens: raise data.max_prompt_tokens to that at least"
    if reason == SAME_PROMPT:
        return "add prompts that differ: equal ones count once"
    if reason is None:
        return "add prompts: data.prompts needs two at least"
    return f"remove the cause of the most frequent reason ({reason}), or add other prompts to data.prompts"


def repeats(config: PolicyConfig, prompts: int) -> list[str]:
    """A line that warns where one update takes the same prompt twice; else none."""
    wanted = config.rollouts.prompts_per_step
    if prompts >= wanted:
        return []
    return [
        f"Warning: {prompts} training prompts for updates of {wanted}: prompts repeat within an update. "
        f"Do this: rollouts.prompts_per_step={prompts}, or more prompts"
    ]


@phase("loading")
def build_trainer(
    config: PolicyConfig,
    chat: Chat,
    prompts: Sequence[Prompt],
    run: RunFolder,
    track: Trackers | None = None,
    *,
    callbacks: Sequence[TrainerCallback] = (),
) -> PolicyTrainer:
    """The base with its roles, the engine, and the loop around them."""
    base, frozen, adapter = load_base(config)
    progress = Progress(config.steps, "update")

    def record(step: int, figures: Mapping[str, float], samples: Sequence[Mapping[str, Any]]) -> None:
        run.metrics(step, figures)
        run.samples(samples)
        if track is not None:
            track.metrics(step, figures)
            track.samples(samples)
        shown = {"reward": "reward/mean", "gold": "gold/mean", "kl": "kl/mean", "tokens": "length/mean"}
        progress.update(step, **{short: figures[name] for short, name in shown.items() if name in figures})

    def attach(model: Any, copy: Any | None) -> Roles:
        for trunk in (model, copy):
            if trunk is not None:
                choose_layers(base_of(trunk), config.model.fused_kernels)
                decide_packing(base_of(trunk), wanted=config.model.packing)
        builder = RewardBuilder(config, model if copy is None else copy, chat)
        rewards, held_out = builder.rewards(), builder.held_out()
        attach_roles(config, model, chat)
        frozen = None if copy is None else builder.model
        for trunk in (model, frozen):
            if trunk is not None:
                sharding.shard(trunk)
        every = 1 if config.held_out_reward is None else config.held_out_reward.every
        return Roles(rewards, held_out, every, frozen)

    engine = build_engine(config, chat)
    ahead = None
    if config.rollouts.overlap and isinstance(engine, ServerEngine):
        ahead = OverlappedRollouts(engine, config.rollouts.samples_per_prompt)
        print(LAG)
    return PolicyTrainer(
        base,
        trainer_arguments(
            config.rollouts,
            **config.optimizer.model_dump(),
            folder=str(run.checkpoints),
            steps=config.steps,
            dtype=config.model.dtype,
            seed=config.seed,
            save_every=config.save_every,
            gradient_checkpointing=config.model.gradient_checkpointing,
        ),
        adapter,
        chat,
        prompts=prompts,
        order=draw_order(len(prompts), config.steps * config.rollouts.prompts_per_step, config.seed),
        frozen=frozen,
        attach=attach,
        engine=engine,
        ahead=ahead,
        rollouts=config.rollouts,
        algorithm=config.algorithm,
        shaping=config.reward_shaping,
        tokens_per_batch=config.tokens_per_batch,
        record=record,
        callbacks=callbacks,
    )


def load_base(config: PolicyConfig) -> tuple[PreTrainedModel, PreTrainedModel | None, LoraConfig | None]:
    """The base, and the adapter that is trained on it; or a base that is trained itself, and a copy of it that stays as it is.

    The copy is kept in float32 as the other is, or their log-probabilities would differ before anything was learnt.

    Raises:
        ConfigError: all weights are to be trained, and sharded by DeepSpeed.
        ModelError: no base is there, or it lacks a layer that the adapter is for.
    """
    model = config.model
    if config.adapter is None and zero.is_requested():
        raise ConfigError(
            "adapter is null: all weights are trained, and the launcher asks for DeepSpeed.",
            allowed="DDP, or FSDP2, which shards what ZeRO-3 shards",
            fix="accelerate launch --config_file configs/launch/fsdp2.yaml",
        )
    if config.adapter is None:
        both = [
            load_causal(
                model.base,
                revision=model.revision,
                dtype=model.dtype,
                quantization="none",
                kept_in_float32=True,
                fast_layers=model.fast_layers,
            )
            for _ in range(2)
        ]
        return both[0].requires_grad_(True), both[1].eval(), None
    base = load_causal(
        model.base,
        revision=model.revision,
        dtype=model.dtype,
        quantization=model.quantization,
        fast_layers=model.fast_layers,
    )
    return base, None, fit_targets(base, lora_config(**config.adapter.model_dump()))


def build_engine(config: PolicyConfig, chat: Chat) -> RolloutEngine:
    """The engine the config names."""
    sampling = Sampling(config.rollouts.max_new_tokens, config.rollouts.temperature, chat.stop_ids)
    if config.rollouts.engine == "transformers":
        if uses_paged_cache(config):
            return PagedEngine(sampling, chat, max_batch_tokens=config.rollouts.max_num_batched_tokens)
        return TransformersEngine(sampling, chat)
    if config.rollouts.engine == "servers":
        return engine_of_servers(config, sampling, chat)
    from policy.rollouts.vllm_engine import VLLMEngine  # imported when asked for: vllm may not be installed

    return VLLMEngine(engine_settings(config), sampling, chat)


def uses_paged_cache(config: PolicyConfig) -> bool:
    """Whether transformers samples by continuous batching: on a GPU, and where the config asks for it.

    Raises:
        ConfigError: it is asked for, and the weights are sharded.
    """
    asked = config.rollouts.continuous_batching
    if asked and sharding.is_requested():
        raise ConfigError(
            "rollouts.continuous_batching is true, and the launcher shards the weights.",
            allowed="continuous batching on weights that are whole: one process, or DDP",
            fix="rollouts.continuous_batching=false, or rollouts.engine=servers",
        )
    if asked is None:
        return torch.cuda.is_available() and not sharding.is_requested()
    return asked


def engine_settings(config: PolicyConfig) -> EngineSettings:
    """vLLM's settings in this process: its part of an update's answers is what it has under way at once.

    Raises:
        ModelError: the base is `embedded`, and cannot be made.
    """
    rollouts = config.rollouts
    prompts = processes.per_rank(rollouts.prompts_per_step, "rollouts.prompts_per_step")
    return EngineSettings(
        resolve_base(config.model.base),
        revision=config.model.revision,
        rank=None if config.adapter is None else config.adapter.rank,
        max_model_len=config.data.max_prompt_tokens + rollouts.max_new_tokens,
        max_sequences=prompts * rollouts.samples_per_prompt,
        dtype=effective_dtype(config.model.dtype),
        quantization=config.model.quantization,
        memory_gib=rollouts.memory_gib,
        gpu_memory_share=rollouts.gpu_memory_share,
        max_num_batched_tokens=rollouts.max_num_batched_tokens,
        sleep=rollouts.sleep,
        seed=config.seed,
    )


def keep_best(trainer: PolicyTrainer) -> dict[str, Any] | None:
    """Of a run that its KL budget ended, put the best weights back; returns why it ended, or None."""
    control = trainer.kl_control
    if control.stopped is None:
        return None
    control.put_best_back(trainer.model)
    close_live_lines()
    print(control.sentence(), flush=True)
    return control.stopped | {"sentence": control.sentence()}


class Evaluation:
    """Answers to the same held-out prompts with the same seeds, before and after."""

    def __init__(self, config: PolicyConfig, trainer: PolicyTrainer, prompts: Sequence[Prompt]) -> None:
        self.config, self.trainer, self.prompts = config, trainer, prompts

    @phase("rollouts")
    def answers(self) -> list[list[Answer]]:
        """Answers of the current policy; the prompts are sharded where there is one for each process."""
        samples = self.config.evaluation.samples
        print(f"Answering {len(self.prompts)} held-out prompts, {samples} times each.", flush=True)
        importance = self.config.rollouts.importance_sampling or ImportanceConfig()
        probe = EngineProbe(importance.level, importance.cap)
        sharded = processes.world_size() <= len(self.prompts)
        own = answer_prompts(
            self.trainer.model,
            self.trainer.reference,
            self.trainer.engine,
            self.trainer.rewards,
            self.trainer.chat,
            processes.shard(self.prompts) if sharded else self.prompts,
            samples=self.config.evaluation.samples,
            seed=seed_of(self.config.seed, -1) + processes.rank(),
            tokens_per_batch=self.config.tokens_per_batch,
            held_out=self.trainer.held_out,
            probe=probe,
        )
        gather_probes(probe).check(self.config.rollouts.logprob_bound, "on the held-out prompts")
        answers = (
            processes.unshard(processes.all_gather(own)) if sharded else processes.broadcast_from_main(own)
        )
        rewards = [answer.reward for group in answers for answer in group]
        if missing := rewards.count(None):
            print(f"{missing} of {len(rewards)} answers have no reward and are left out.", flush=True)
        return answers


def dry_run(config: PolicyConfig) -> list[str]:
    """What a run would do, without doing it."""
    load_callbacks(config.callbacks)
    Trackers(config)  # checks that they are installed
    chat = load_chat(config)
    data = load_data(config, chat)
    notes = check_base(config)
    check_sources(config, chat, data.training + data.held_out)
    check_start(config, chat)
    rollouts = config.rollouts
    answers = rollouts.prompts_per_step * rollouts.samples_per_prompt
    return [
        *data.drops.lines(),
        *repeats(config, len(data.training)),
        *notes,
        data.split_sentence(),
        f"{config.steps} updates of {rollouts.prompts_per_step} prompts x {rollouts.samples_per_prompt} answers "
        f"= {answers} answers of at most {rollouts.max_new_tokens} tokens, by {rollouts.engine}",
        *([LAG] if rollouts.overlap else []),
        *describe_rewards(config),
        *describe_algorithm(config.algorithm, rollouts.max_new_tokens),
        *describe_roles(config),
    ]
