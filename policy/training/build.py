"""The base model with its roles, and the trainer around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, TrainerCallback

from policy.rewards.build import RewardBuilder
from policy.rollouts.build import build_engine
from policy.rollouts.overlap import LAG, OverlappedRollouts
from policy.rollouts.servers.engine import ServerEngine
from policy.training.roles import Roles, attach_roles
from policy.training.trainer import PolicyTrainer, trainer_arguments
from rlhf.config.policy import PolicyConfig
from rlhf.core.errors import ConfigError
from rlhf.core.records import Prompt
from rlhf.distributed import sharding, zero
from rlhf.kernels.fused import choose_layers
from rlhf.kernels.packing_check import decide_packing
from rlhf.models.chat import Chat
from rlhf.models.loading import LoraConfig, base_of, fit_targets, load_causal, lora_config
from rlhf.models.trunk import load_configured
from rlhf.runs.folder import RunFolder
from rlhf.runs.gpu_memory import phase
from rlhf.runs.progress import Progress
from rlhf.tracking.recording import policy_recorder
from rlhf.tracking.trackers import Trackers
from rlhf.training.arguments import settings_of
from rlhf.training.schedule import draw_order


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
    """Load the base, attach its roles, start the engine and build the trainer."""
    base, frozen, adapter = load_base(config)

    def attach(model: Any, frozen: Any | None) -> Roles:
        for trunk in (model, frozen):
            if trunk is not None:
                choose_layers(base_of(trunk), config.model.fused_kernels)
                decide_packing(base_of(trunk), wanted=config.model.packing, logits=True)
        builder = RewardBuilder(config, model if frozen is None else frozen, chat)
        rewards, held_out = builder.rewards(), builder.held_out()
        attach_roles(config, model, chat)
        wrapped = None if frozen is None else builder.model
        for trunk in (model, wrapped):
            if trunk is not None:
                sharding.shard(trunk)
        every = 1 if config.held_out_reward is None else config.held_out_reward.every
        return Roles(rewards, held_out, every, wrapped)

    engine = build_engine(config, chat)
    overlap = None
    if config.rollouts.overlap and isinstance(engine, ServerEngine):
        overlap = OverlappedRollouts(engine, config.rollouts.samples_per_prompt)
        print(LAG)
    return PolicyTrainer(
        base,
        trainer_arguments(
            config.rollouts,
            **settings_of(config, config.optimizer),
            folder=str(run.checkpoints),
            steps=config.steps,
        ),
        adapter,
        chat,
        prompts=prompts,
        order=draw_order(len(prompts), config.steps * config.rollouts.prompts_per_step, config.seed),
        frozen=frozen,
        attach=attach,
        engine=engine,
        overlap=overlap,
        rollouts=config.rollouts,
        algorithm=config.algorithm,
        shaping=config.reward_shaping,
        tokens_per_batch=config.tokens_per_batch,
        record=policy_recorder(run, track, Progress(config.steps, "update")),
        callbacks=callbacks,
    )


def load_base(config: PolicyConfig) -> tuple[PreTrainedModel, PreTrainedModel | None, LoraConfig | None]:
    """(base, None, adapter config); or (base, frozen copy, None) where all weights are trained.

    The copy is kept in float32 like the trained base, so that both give equal log-probabilities before
    training.

    Raises:
        ConfigError: all weights are to be trained, and sharded by DeepSpeed.
        ModelError: there is no such base, or it lacks a target layer of the adapter.
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
    base = load_configured(model)
    return base, None, fit_targets(base, lora_config(**config.adapter.model_dump()))
