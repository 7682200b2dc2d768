"""Beginning from an adapter that was trained before: it must fit what is trained here in everything but its values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rlhf.adapters.attached import set_weights
from rlhf.adapters.storage import Adapter
from rlhf.core.errors import ModelError
from rlhf.models.chat import Chat
from rlhf.models.loading import POLICY, PeftModel, fingerprint


def start_from(
    folder: Path,
    start: Adapter,
    model: PeftModel,
    chat: Chat,
    *,
    others: Mapping[str, tuple[Any, Any]] | None = None,
    beside: Mapping[str, Tensor] | None = None,
) -> None:
    """Give the adapter that is trained the weights of the one in a folder.

    Args:
        start: what the folder holds.
        others: what else must be the same, by the name it has in a config: (there, here).
        beside: weights that go with the adapter's own, such as a head.

    Raises:
        ModelError: it differs in what cannot differ; every difference is named.
    """
    theirs, ours = start.config, model.peft_config[POLICY]
    compared: dict[str, tuple[Any, Any]] = {
        "base": (start.card["fingerprint"], fingerprint(model.get_base_model())),
        "chat template": (start.card["template_hash"][:12], chat.template_hash[:12]),
        **(others or {}),
        "adapter.rank": (theirs.r, ours.r),
        "adapter.alpha": (float(theirs.lora_alpha), float(ours.lora_alpha)),
        "adapter.targets": (_targets(theirs), _targets(ours)),
    }
    if theirs.use_dora or theirs.use_rslora:
        compared["kind of adapter"] = ("DoRA or rsLoRA", "LoRA")
    apart = [f"  {what}: {old} there, {new} here" for what, (old, new) in compared.items() if old != new]
    if apart:
        same = ", ".join(["base", "chat template", *(others or {})])
        raise ModelError(
            "\n".join([f"Training cannot begin from {folder}:", *apart]),
            allowed=f"a {start.kind} with the same {same} and adapter settings",
            fix="set these keys as they are there, or leave `start` out",
        )
    set_weights(model, {**start.weights, **(beside or {})})


def _targets(config: Any) -> Any:
    named = config.target_modules
    return named if isinstance(named, str) else sorted(named)
