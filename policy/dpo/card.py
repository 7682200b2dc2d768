"""The files beside a DPO policy's adapter: policy.json and the model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from policy.card import adapter_code
from policy.training.describe import reference_words
from rlhf.config.dpo import DPOConfig
from rlhf.core.markdown import bullets
from rlhf.models.card import CARD, license_line, render_card, source_line
from rlhf.models.chat import Chat
from rlhf.models.loading import PeftModel
from rlhf.models.saving import base_facts, write_adapter_folder
from rlhf.runs.files import atomic_write_text

FORMS = {
    "regular": "-log sigmoid(beta D)",
    "margin": "-log sigmoid(beta D - m)",
    "scaled": "-m log sigmoid(beta D)",
}


def save_policy(config: DPOConfig, model: PeftModel, chat: Chat, folder: Path) -> None:
    """Write adapter, tokenizer and cards under their final name only when whole; all processes must call."""
    card = {
        **base_facts(config.model, model, chat),
        "start": config.start,
        "method": "dpo",
        "loss": config.loss,
        "beta": config.beta,
    }
    text = card_text(config, folder)
    write_adapter_folder(folder, model, chat, lambda: {"policy.json": json.dumps(card, indent=1), CARD: text})


def write_card(config: DPOConfig, final: Path, evaluation: Mapping[str, Any]) -> None:
    """Write the card again, with the figures of eval.json."""
    atomic_write_text(final / CARD, card_text(config, final, evaluation))


def card_text(config: DPOConfig, final: Path, evaluation: Mapping[str, Any] | None = None) -> str:
    """The card as Markdown; without `evaluation`, that of a policy that has not been evaluated."""
    adapter, sources = config.adapter, config.data.preferences
    figures = "Not evaluated yet."
    if evaluation and "overall" in evaluation:
        low, high = (100 * end for end in evaluation["intervals"]["overall"])
        figures = (
            f"The implicit reward prefers the chosen answer in {100 * evaluation['overall']:.1f} % of "
            f"{evaluation['count']:,} held-out pairs (95 % interval {low:.1f} to {high:.1f}); the longer "
            f"answer is the chosen one in {100 * evaluation['length_baseline']:.1f} %."
        )
    return render_card(
        base=config.model.base,
        task="text-generation",
        library="peft",
        title="Aligned policy",
        summary=f"A LoRA adapter trained by direct preference optimisation (DPO), {config.loss} loss.",
        code=adapter_code(config.model.base, config.model.revision, config.model.dtype, final),
        datasets=[source.path for source in sources],
        sections={
            "Training": bullets(
                [
                    f"Loss: {FORMS[config.loss]}, beta {config.beta:g}; D is the difference of the "
                    "log-ratios to the reference, m the preference strength",
                    f"Reference: {reference_words(config.start)}",
                    f"Batches: {config.batch_size} pairs; learning rate: {config.optimizer.learning_rate:g}",
                    f"LoRA of rank {adapter.rank}, alpha {adapter.alpha:g}, on {adapter.targets}",
                ]
            ),
            "Data": bullets(map(source_line, sources)),
            "Figures": figures,
            "License": license_line(config.model.base),
        },
    )
