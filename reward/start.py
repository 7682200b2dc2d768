"""Beginning from another reward model: its adapter and its head, as NeMo-Aligner's `load_rm_head_weights=True`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf.config.reward import RewardConfig
from rlhf.core.adapters import HEAD_WEIGHT, RewardAdapter, put_weights
from rlhf.core.chat import Chat
from rlhf.core.errors import ModelError
from rlhf.core.models import POLICY, PeftModel, fingerprint


def begin_from(folder: Path, config: RewardConfig, model: PeftModel, chat: Chat) -> None:
    """Give a fresh reward model the weights of the one in a folder.

    Raises:
        ModelError: no reward model there, or it differs in what cannot differ; every difference is named.
    """
    start = RewardAdapter.read(folder)
    theirs, ours = start.lora.config, model.peft_config[POLICY]
    compared: dict[str, tuple[Any, Any]] = {
        "base": (start.card["fingerprint"], fingerprint(model.get_base_model())),
        "chat template": (start.card["template_hash"][:12], chat.template_hash[:12]),
        "attributes": (start.card["attributes"], config.attributes),
        "adapter.rank": (theirs.r, ours.r),
        "adapter.alpha": (float(theirs.lora_alpha), float(ours.lora_alpha)),
        "adapter.targets": (_targets(theirs), _targets(ours)),
    }
    if theirs.use_dora or theirs.use_rslora:
        compared["kind of adapter"] = ("DoRA or rsLoRA", "LoRA")
    apart = [f"  {what}: {old} there, {new} here" for what, (old, new) in compared.items() if old != new]
    if apart:
        raise ModelError(
            "\n".join([f"Training cannot begin from {folder}:", *apart]),
            allowed="a reward model with the same base, chat template, attributes in their order, and adapter settings",
            fix="set these keys as they are there, or leave `start` out",
        )
    put_weights(model, {**start.lora.weights, HEAD_WEIGHT: start.head_AD})


def _targets(config: Any) -> Any:
    named = config.target_modules
    return named if isinstance(named, str) else sorted(named)
