"""Initialise the trained adapter from an earlier one, which must match in everything but its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rlhf.adapters.attached import set_weights
from rlhf.adapters.storage import BEYOND_LORA, Adapter
from rlhf.config.schema import AdapterConfig
from rlhf.core.errors import ModelError
from rlhf.models.chat import Chat
from rlhf.models.folders import merge_command
from rlhf.models.loading import PeftModel, fingerprint
from rlhf.models.names import POLICY


def check_adapter(folder: Path, start: Adapter, adapter: AdapterConfig | None) -> None:
    """Check before a model is loaded that training can start from an adapter.

    Args:
        start: the adapter in the folder.
        adapter: the settings of the adapter to train.

    Raises:
        ModelError: it is not a plain LoRA, or has another rank or alpha.
    """
    config = start.config
    if config.use_dora or config.use_rslora:
        merge = (
            merge_command(str(folder), start.folder or folder)
            if config.use_dora
            else f"rlhf export {folder} --output MERGED"
        )
        raise ModelError(
            f"start: the adapter in {folder} is a {'DoRA' if config.use_dora else 'rsLoRA'}.",
            allowed=f"a {start.kind} whose adapter is a plain LoRA",
            fix=f"merge it into its base, then use it as model.base: {merge}",
        )
    there = {"adapter.rank": config.r, "adapter.alpha": float(config.lora_alpha)}
    here = {} if adapter is None else {"adapter.rank": adapter.rank, "adapter.alpha": float(adapter.alpha)}
    _require_plain(folder, start)
    differing = [name for name in here if here[name] != there[name]]
    if differing:
        lines = [f"  {name}: {there[name]} there, {here[name]} here" for name in differing]
        raise ModelError(
            "\n".join([f"Training cannot start from {folder}:", *lines]),
            allowed=f"a {start.kind} with the same base, chat template and adapter settings",
            fix=" ".join(f"{name}={there[name]:g}" for name in differing),
        )


def start_from(
    folder: Path,
    start: Adapter,
    model: PeftModel,
    chat: Chat,
    *,
    others: Mapping[str, tuple[Any, Any]] | None = None,
    beside: Mapping[str, Tensor] | None = None,
) -> None:
    """Initialise the trained adapter with the weights of the adapter in a folder.

    Args:
        start: the adapter in the folder.
        others: further settings that must be equal, by config key: (in the folder, in this run).
        beside: further weights to load, such as a head.

    Raises:
        ModelError: the adapters are incompatible; every difference is listed.
    """
    _require_plain(folder, start)
    initial, trained = start.config, model.peft_config[POLICY]
    compared: dict[str, tuple[Any, Any]] = {
        "base": (start.card["fingerprint"], fingerprint(model.get_base_model())),
        "chat template": (start.card["template_hash"][:12], chat.template_hash[:12]),
        **(others or {}),
        "adapter.rank": (initial.r, trained.r),
        "adapter.alpha": (float(initial.lora_alpha), float(trained.lora_alpha)),
        "adapter.targets": (_targets(initial), _targets(trained)),
    }
    if initial.use_rslora:
        compared["kind of adapter"] = ("rsLoRA", "LoRA")
    differences = [
        f"  {name}: {old} there, {new} here" for name, (old, new) in compared.items() if old != new
    ]
    if differences:
        same = ", ".join(["base", "chat template", *(others or {})])
        raise ModelError(
            "\n".join([f"Training cannot start from {folder}:", *differences]),
            allowed=f"a {start.kind} with the same {same} and adapter settings",
            fix="set these keys to the values there, or remove `start`",
        )
    set_weights(model, {**start.weights, **(beside or {})})


def _require_plain(folder: Path, start: Adapter) -> None:
    """Require one rank and scale for all layers of an adapter, and a list of their names."""
    beyond = [name for name in BEYOND_LORA if getattr(start.config, name)]
    if beyond or isinstance(start.config.target_modules, str):
        raise ModelError(
            f"start: the adapter in {folder} has "
            + (f"{beyond[0]}: layers of different kinds." if beyond else "a pattern as target_modules."),
            allowed=f"a {start.kind} whose layers have one rank and scale, and are named in a list",
            fix="merge it into its base, then use it as model.base: "
            + merge_command(str(folder), start.folder or folder),
        )


def _targets(config: Any) -> Any:
    targets = config.target_modules
    return targets if isinstance(targets, str) else sorted(targets)
