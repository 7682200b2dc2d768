"""Build `train-reward`'s trainer on given items, without a run folder, for the benchmarks of its updates."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence

from reward.training.batches import Item
from reward.training.trainer import HybridRewardTrainer, trainer_arguments
from rlhf.config.reward import RewardConfig
from rlhf.models.chat import Chat
from rlhf.models.loading import PeftModel

NEVER = 10**6


def reward_trainer(
    config: RewardConfig,
    model: PeftModel,
    chat: Chat,
    items: Sequence[Item] = (),
    *,
    order: Sequence[int],
    updates: int = 1,
    validation: Sequence[Item] = (),
    tokens_per_batch: int | None = None,
    record: Callable[[int, Mapping[str, float]], None] = lambda *_: None,
) -> HybridRewardTrainer:
    """The trainer of a config's first stage, which validates and saves only on request.

    Its learning rate is constant.

    Args:
        order: the index of each draw's item, over all updates.
        tokens_per_batch: replaces the config's.
    """
    stage = config.stages[0]
    options = trainer_arguments(
        **stage.optimizer.model_dump() | {"warmup_steps": 0},
        batch_size=len(order) // updates,
        folder=tempfile.mkdtemp(),
        steps=updates,
        dtype=config.model.dtype,
        seed=0,
        evaluate_every=NEVER,
        save_every=NEVER,
        has_validation=bool(validation),
        gradient_checkpointing=config.model.gradient_checkpointing,
    )
    return HybridRewardTrainer(
        model,
        options,
        chat.tokenizer,
        stage=stage,
        items=items,
        order=order,
        validation=validation,
        tokens_per_batch=tokens_per_batch or config.tokens_per_batch,
        step_offset=0,
        record=record,
    )
