"""Extrapolate from a weak to a strong checkpoint (ExPO), on the adapters of one base.

    theta = theta_weak + factor (theta_strong - theta_weak)        for every LoRA update and the reward head

The product B A is extrapolated, not A and B; its rank is r_weak + r_strong.

Source: ExPO (arXiv 2404.16792; its alpha is factor - 1), HelpSteer2-Preference (arXiv 2410.01257; factor
1.52).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rlhf.adapters.lowrank import Update, combine, rank_of, truncate
from rlhf.adapters.storage import Adapter, RewardAdapter, common_targets, read_role, write_adapter
from rlhf.core.errors import ConfigError, ModelError, OutputError
from rlhf.core.markdown import bullets
from rlhf.models.card import CARD, base_literal, license_line, render_card
from rlhf.models.chat import Chat
from rlhf.runs.files import atomic_folder


@dataclass(frozen=True)
class Extrapolation:
    """The result of an extrapolation."""

    factor: float
    update: Update
    head_AD: Tensor | None
    """None for policies."""
    targets: list[str]
    error: float
    """The relative Frobenius error of truncation to a rank, over all layers; 0 without truncation."""


def extrapolate(
    weak: Adapter | RewardAdapter, strong: Adapter | RewardAdapter, factor: float, rank: int | None = None
) -> Extrapolation:
    """Combine two adapters exactly, or truncate to a rank; factor 0 gives the weak adapter, 1 the strong one.

    Raises:
        ModelError: an adapter is not a plain LoRA.
    """
    (weak_lora, weak_head), (strong_lora, strong_head) = _parts(weak), _parts(strong)
    weights = [(1 - factor, weak_lora), (factor, strong_lora)]
    update: Update = combine([(weight, lora.update()) for weight, lora in weights])
    error = 0.0
    if rank is not None and rank < rank_of(update):
        update, error = truncate(update, rank)
    head_AD = None
    if weak_head is not None and strong_head is not None:
        head_AD = (1 - factor) * weak_head + factor * strong_head
    configs = [lora.config for weight, lora in weights if weight != 0]
    return Extrapolation(factor, update, head_AD, common_targets(configs, update), error)


def extrapolate_folders(
    weak: Path, strong: Path, factor: float, output: Path, *, rank: int | None = None
) -> Extrapolation:
    """Extrapolate from two `final/` folders, and write a third one atomically.

    Raises:
        ModelError: a folder is not a model of this project, or the two are incompatible.
        OutputError: the output folder is not empty.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputError(
            f"--output {output} exists and is not empty.",
            allowed="a new or an empty folder",
            fix="another --output",
        )
    weaker, stronger = read_role(weak), read_role(strong)
    check_compatible(weaker, stronger)
    result = extrapolate(weaker, stronger, factor, rank)
    origin = {
        "weak": str(weak),
        "strong": str(strong),
        "factor": factor,
        "rank": rank_of(result.update),
        "truncation_error": result.error,
    }
    card = {**stronger.card, "extrapolated": origin}
    chat = Chat.beside(strong, card)
    with atomic_folder(output) as folder:
        write_adapter(folder, result.update, result.head_AD, targets=result.targets, base=card["base"])
        chat.save_tokenizer(folder)
        is_reward = isinstance(stronger, RewardAdapter)
        (folder / ("reward.json" if is_reward else "policy.json")).write_text(
            json.dumps(card, indent=1), encoding="utf-8"
        )
        text = _card_text(card, origin, output, is_reward=is_reward)
        (folder / CARD).write_text(text, encoding="utf-8")
    return result


def check_compatible(weak: Adapter | RewardAdapter, strong: Adapter | RewardAdapter) -> None:
    """Require two models of the same kind, base, chat template and attributes.

    Raises:
        ModelError: they differ; every difference is listed.
    """
    weaker, stronger = _facts(weak), _facts(strong)
    differences = [
        f"  {name}: {weaker[name][1]} in the weak model, {stronger[name][1]} in the strong model"
        for name in weaker
        if weaker[name][0] != stronger[name][0]
    ]
    if differences:
        raise ModelError(
            "\n".join(["These two models cannot be extrapolated:", *differences]),
            allowed="two reward models with the same attributes in the same order, or two policies, with "
            "the same base and chat template",
            fix="use a model and one that was trained further from it",
        )


def require_factor(factor: float) -> None:
    """Require a finite factor of at least 0.

    Raises:
        ConfigError: it is not.
    """
    if not 0 <= factor < float("inf"):
        raise ConfigError(
            f"--factor is {factor:g}; 0 is the weak model, 1 the strong one, more than 1 extrapolates.",
            allowed="a number of at least 0; the paper's is 1.52",
        )


def _facts(model: Adapter | RewardAdapter) -> dict[str, tuple[Any, str]]:
    """The facts that must be equal: for each, the value to compare and its text for messages."""
    card, kind = model.card, _parts(model)[0].kind
    attributes = card.get("attributes", [])
    return {
        "kind": (kind, kind),
        "base": (card["fingerprint"], f"{card['base']!r} (fingerprint {card['fingerprint']})"),
        "chat template": (
            card["template_hash"],
            f"{card['template_hash'][:12]}… (date {card['template_date']})",
        ),
        "attributes": (attributes, ", ".join(attributes) or "none"),
        "reasoning": (card.get("reasoning", "keep"), card.get("reasoning", "keep")),
    }


def _parts(model: Adapter | RewardAdapter) -> tuple[Adapter, Tensor | None]:
    return (model.lora, model.head_AD) if isinstance(model, RewardAdapter) else (model, None)


def _card_text(card: Mapping[str, Any], origin: Mapping[str, Any], folder: Path, *, is_reward: bool) -> str:
    auto = "AutoModelForSequenceClassification" if is_reward else "AutoModelForCausalLM"
    outputs = f", num_labels={len(card['attributes'])}" if is_reward else ""
    method = (
        f"truncated to rank {origin['rank']}, with a relative error of {origin['truncation_error']:.2g}"
        if origin["truncation_error"]
        else f"exactly, in rank {origin['rank']}"
    )
    revision = f", revision={card['revision']!r}" if card["revision"] else ""
    return render_card(
        base=card["base"],
        task="text-classification" if is_reward else "text-generation",
        library="peft",
        title=f"Extrapolated {'reward model' if is_reward else 'policy'}",
        summary=f"""Computed from two models, without training, by ExPO (arXiv 2404.16792), {method}:

    weak + {origin["factor"]:g} x (strong - weak)""",
        code=f"""from peft import PeftModel
from transformers import {auto}

base = {base_literal(card["base"])}
model = {auto}.from_pretrained(base{revision}{outputs})
model = PeftModel.from_pretrained(model, {str(folder)!r})""",
        sections={
            "Models": bullets([f"weak: {origin['weak']}", f"strong: {origin['strong']}"]),
            "Facts": f"SHA-256 of the chat template with the date {card['template_date']}: "
            f"{card['template_hash']}",
            "License": license_line(card["base"]),
        },
    )
