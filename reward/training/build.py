"""A reward model before training: its base, adapter and head."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from reward.training.batches import Item
from reward.training.head_start import fit_head
from rlhf.config.reward import RewardConfig
from rlhf.distributed.sharding import full_tensor
from rlhf.kernels.packing_check import decide_packing
from rlhf.models.chat import Chat
from rlhf.models.forwards import enable_packed_scores
from rlhf.models.loading import (
    PeftModel,
    load_classifier,
    lora_config,
    reward_head,
    set_head,
    with_adapter,
)
from rlhf.models.trunk import placed
from rlhf.runs.gpu_memory import phase
from rlhf.runs.progress import Progress
from rlhf.training.schedule import draw_order


@phase("loading")
def build_model(config: RewardConfig, chat: Chat) -> PeftModel:
    """The base as a sequence classifier with a new adapter and head."""
    model = load_classifier(
        config.model.base,
        attributes=config.attributes,
        revision=config.model.revision,
        dtype=config.model.dtype,
        quantization=config.model.quantization,
        pad_id=chat.pad_id,
        fast_layers=config.model.fast_layers,
    )
    model = placed(model, config.model.quantization, config.model.fused_kernels)
    decide_packing(model, wanted=config.model.packing)
    enable_packed_scores(model)
    return with_adapter(model, lora_config(**config.adapter.model_dump(), head=True))


def start_head(config: RewardConfig, items: Sequence[Item], model: PeftModel, chat: Chat) -> None:
    """Fit the head on items of the first stage, unless it is already trained."""
    if full_tensor(reward_head(model).weight).any():
        return
    order = draw_order(len(items), min(config.head_start, len(items)), config.seed)
    print(f"Fitting the head on {len(order)} items, before training the adapter.")
    hidden = model.config.get_text_config().hidden_size
    with torch.random.fork_rng(devices=[]):  # keeps the run's random numbers
        head = torch.nn.Linear(hidden, len(config.attributes), bias=False)
    torch.nn.init.zeros_(head.weight)
    with Progress(len(order), "item") as progress:
        fit_head(
            model,
            head,
            [items[i] for i in order],
            budget=config.tokens_per_batch,
            pad_id=chat.pad_id,
            done=progress.update,
        )
    set_head(model, head.weight.detach())
