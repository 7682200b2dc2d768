"""The model card of a principle model or a justifier: a LoRA adapter on a causal base, without a head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlhf.config.schema import ModelConfig
from rlhf.models.card import base_literal, license_line, render_card
from rlhf.models.embedded import known_as


def adapter_card(
    model: ModelConfig, final: Path, *, title: str, summary: str, usage: str, sources: Sequence[str]
) -> str:
    """The card as Markdown.

    Args:
        final: the folder of the adapter.
        summary: what the model does, in a sentence or two.
        usage: a command of this project that uses the folder.
        sources: paths or Hub names of the training data.
    """
    revision = f", revision={model.revision!r}" if model.revision else ""
    return render_card(
        base=model.base,
        task="text-generation",
        library="peft",
        title=title,
        summary=f"A LoRA adapter on `{known_as(model.base)}`. {summary}",
        code="import peft, transformers\n\n"
        f"name = {base_literal(model.base)}\n"
        f"base = transformers.AutoModelForCausalLM.from_pretrained(name{revision})\n"
        f"tokenizer = transformers.AutoTokenizer.from_pretrained({str(final)!r})\n"
        f"model = peft.PeftModel.from_pretrained(base, {str(final)!r})",
        datasets=sources,
        sections={"Use": f"```\n{usage}\n```", "License": license_line(model.base)},
    )
