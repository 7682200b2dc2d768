"""Writes `final/`: the policy's adapter or, where all weights were trained, a whole transformers model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from policy.card import card_text
from policy.export import generation_config_of
from rlhf.config.policy import PolicyConfig
from rlhf.distributed import processes
from rlhf.models.card import CARD
from rlhf.models.chat import Chat
from rlhf.models.dropout import CONFIGURED_NOISE
from rlhf.models.embedded import resolve_base
from rlhf.models.names import TRAINED_WHOLE
from rlhf.models.saving import base_facts, write_adapter_folder
from rlhf.runs import checkpoints
from rlhf.runs.files import atomic_folder

SET_BY_TRAINER = ("use_cache", "bos_token_id", "eos_token_id", "pad_token_id")
"""Keys of a model's config that transformers' Trainer changes; the base's values are restored."""


def save_final(config: PolicyConfig, model: Any, chat: Chat, final: Path) -> None:
    """Write policy, tokenizer and model card; the folder gets its name only when complete."""
    card = {
        **base_facts(config.model, model, chat),
        "start": config.start,
        "reward": config.model_dump(mode="json")["reward"],
    }
    if config.adapter is not None:
        write_adapter_folder(
            final,
            model,
            chat,
            lambda: {"policy.json": json.dumps(card, indent=1), CARD: card_text(config, final)},
        )
        return
    weights = checkpoints.trainable_state(model, everywhere=False)

    def write() -> None:
        with atomic_folder(final) as folder:
            _write_whole(model, weights, card, chat, folder)
            chat.save_tokenizer(folder)
            (folder / CARD).write_text(card_text(config, final), encoding="utf-8")

    processes.on_main(write)


def _write_whole(
    model: Any, weights: Mapping[str, Tensor], card: Mapping[str, Any], chat: Chat, folder: Path
) -> None:
    """In the format that the config names, as the base was: what is kept in float32 between updates needs no
    more to be used.

    The card stands in config.json, and tells these weights from those of the base, which adapters on that do
    not fit.
    """
    dtype = getattr(torch, card["dtype"])
    stored = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in stored}
    whole = {name: weight.to(dtype) for name, weight in weights.items()} | buffers
    model.save_pretrained(folder, state_dict=whole)
    digests = "".join(checkpoints.file_digest(file) for file in sorted(folder.glob("*.safetensors")))
    base = AutoConfig.from_pretrained(
        resolve_base(card["base"]), revision=card["revision"], trust_remote_code=False
    )
    model_config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model_config |= {key: getattr(base, key, None) for key in SET_BY_TRAINER} | getattr(
        model, CONFIGURED_NOISE, {}
    )
    model_config |= {
        "dtype": card["dtype"],
        TRAINED_WHOLE: {**card, "weights": hashlib.sha256(digests.encode()).hexdigest()},
    }
    (folder / "config.json").write_text(json.dumps(model_config, indent=2), encoding="utf-8")
    generation_config_of(card["base"], card["revision"], chat).save_pretrained(folder)
