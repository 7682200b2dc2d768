"""ExPO: a step further in the direction that training went, on adapters of one base, as weights.

    theta = theta_weak + factor (theta_strong - theta_weak)        every LoRA update, and the reward head

A and B are not extrapolated: their product is, which has rank r_weak + r_strong.

Source: ExPO (arXiv 2404.16792; its alpha is factor - 1), HelpSteer2-Preference (arXiv 2410.01257; factor 1.52).
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
from rlhf.models.card import CARD, base_literal, bullets, license_line, render_card
from rlhf.models.chat import Chat
from rlhf.runs.folder import atomic_folder


@dataclass(frozen=True)
class Extrapolation:
    """What came of two adapters and a factor."""

    factor: float
    update: Update
    head_AD: Tensor | None
    """None: of policies."""
    targets: list[str]
    error: float
    """The relative Frobenius error of cutting to a rank, over all layers; 0 where nothing was cut."""


def extrapolate(
    weak: Adapter | RewardAdapter, strong: Adapter | RewardAdapter, factor: float, rank: int | None = None
) -> Extrapolation:
    """Combine two adapters exactly, or cut to a rank; factor 0 gives the weak one, 1 the strong one.

    Raises:
        ModelError: an adapter is more than a LoRA.
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
    """Read two `final/` folders, extrapolate, and write a third of the same form, whole or not at all.

    Raises:
        ModelError: a folder is no model of this project, or the two do not belong together.
        OutputError: the output folder holds something.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputError(
            f"--output {output} is there already.",
            allowed="a new or an empty folder",
            fix="another --output",
        )
    weaker, stronger = read_role(weak), read_role(strong)
    check_together(weaker, stronger)
    made = extrapolate(weaker, stronger, factor, rank)
    origin = {
        "weak": str(weak),
        "strong": str(strong),
        "factor": factor,
        "rank": rank_of(made.update),
        "truncation_error": made.error,
    }
    card = {**stronger.card, "extrapolated": origin}
    chat = Chat.beside(strong, card)
    with atomic_folder(output) as folder:
        write_adapter(folder, made.update, made.head_AD, targets=made.targets, base=card["base"])
        chat.save_tokenizer(folder)
        is_reward = isinstance(stronger, RewardAdapter)
        (folder / ("reward.json" if is_reward else "policy.json")).write_text(
            json.dumps(card, indent=1), encoding="utf-8"
        )
        text = _card_text(card, origin, output, is_reward=is_reward)
        (folder / CARD).write_text(text, encoding="utf-8")
    return made


def check_together(weak: Adapter | RewardAdapter, strong: Adapter | RewardAdapter) -> None:
    """Make sure that two models are of one kind, base and chat template and, with heads, of the same outputs.

    Raises:
        ModelError: they are not; every difference is named.
    """
    weaker, stronger = _facts(weak), _facts(strong)
    apart = [
        f"  {what}: {weaker[what][1]} in the weak one, {stronger[what][1]} in the strong one"
        for what in weaker
        if weaker[what][0] != stronger[what][0]
    ]
    if apart:
        raise ModelError(
            "\n".join(["These two models cannot be extrapolated:", *apart]),
            allowed="two reward models with the same attributes in the same order, or two policies; on one base, with one "
            "chat template",
            fix="give a model and the one that was trained on from it",
        )


def require_factor(factor: float) -> None:
    """Refuse a factor that is no extrapolation of anything.

    Raises:
        ConfigError: it is below 0.
    """
    if not 0 <= factor < float("inf"):
        raise ConfigError(
            f"--factor {factor:g}: an extrapolation goes from the weak model (0) to the strong one (1) and beyond.",
            allowed="a number of at least 0; the paper's is 1.52",
        )


def _facts(model: Adapter | RewardAdapter) -> dict[str, tuple[Any, str]]:
    """What must agree: for each, the value to compare and the words for people."""
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
    cut = (
        f"cut to rank {origin['rank']}, with a relative error of {origin['truncation_error']:.2g}"
        if origin["truncation_error"]
        else f"exactly, in rank {origin['rank']}"
    )
    revision = f", revision={card['revision']!r}" if card["revision"] else ""
    return render_card(
        base=card["base"],
        task="text-classification" if is_reward else "text-generation",
        library="peft",
        title=f"Extrapolated {'reward model' if is_reward else 'policy'}",
        summary=f"""Not trained, but computed from two models by ExPO (arXiv 2404.16792), {cut}:

    weak + {origin["factor"]:g} x (strong - weak)""",
        code=f"""from peft import PeftModel
from transformers import {auto}

base = {base_literal(card["base"])}
model = {auto}.from_pretrained(base{revision}{outputs})
model = PeftModel.from_pretrained(model, {str(folder)!r})""",
        sections={
            "Models": bullets([f"weak: {origin['weak']}", f"strong: {origin['strong']}"]),
            "Facts": f"SHA-256 of the chat template with the date {card['template_date']}: {card['template_hash']}",
            "License": license_line(card["base"]),
        },
    )
