"""What a run leaves in `final/`: the policy's adapter or, where all weights were trained, a whole model of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from policy.describe import card_text
from policy.export import own_generation_config
from rlhf.config.policy import PolicyConfig
from rlhf.core import checkpoints, processes
from rlhf.core.chat import Chat
from rlhf.core.models import POLICY, base_of, fingerprint
from rlhf.core.runs import RunFolder, atomic_folder


def save_final(config: PolicyConfig, model: Any, chat: Chat, run: RunFolder) -> None:
    """The policy, its tokenizer and card, under their final name only when whole."""
    weights, base_print = checkpoints.trainable_state(model), fingerprint(base_of(model))

    def write() -> None:
        with atomic_folder(run.final) as folder:
            if config.adapter is None:
                _write_whole(config, model, weights, chat, folder)
            else:
                _write_adapter(config, model, weights, chat, folder, base_print)
            chat.tokenizer.save_pretrained(folder)
            (folder / "README.md").write_text(card_text(config))

    processes.on_main(write)


def _write_adapter(
    config: PolicyConfig, model: Any, weights: dict[str, Tensor], chat: Chat, folder: Path, base_print: str
) -> None:
    card = {
        "base": config.model.base,
        "revision": config.model.revision,
        "fingerprint": base_print,
        "dtype": config.model.dtype,
        "quantization": config.model.quantization,
        "template_date": config.model.template_date,
        "template_hash": chat.template_hash,
        "start": config.start,
        "reward": config.model_dump(mode="json")["reward"],
    }
    model.save_pretrained(str(folder), selected_adapters=[POLICY], state_dict=weights)
    (folder / "policy.json").write_text(json.dumps(card, indent=1))


def _write_whole(
    config: PolicyConfig, model: Any, weights: dict[str, Tensor], chat: Chat, folder: Path
) -> None:
    """In the format the config names, as the base was: what is kept in float32 between updates needs no more to be used."""
    dtype = getattr(torch, config.model.dtype)
    model.save_pretrained(folder, state_dict={name: weight.to(dtype) for name, weight in weights.items()})
    told = json.loads((folder / "config.json").read_text()) | {"dtype": config.model.dtype}
    (folder / "config.json").write_text(json.dumps(told, indent=2))
    own_generation_config(config.model.base, config.model.revision, chat).save_pretrained(folder)
