"""What `final/` of a reward run holds: adapter and head, tokenizer, reward.json and a card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from rlhf.config.reward import RewardConfig
from rlhf.core.chat import Chat
from rlhf.core.models import PeftModel, fingerprint
from rlhf.core.runs import atomic_folder


def save_final(config: RewardConfig, model: PeftModel, chat: Chat, final: Path) -> None:
    """Write the folder, under its final name only when whole."""
    card = {
        "base": config.model.base,
        "revision": config.model.revision,
        "fingerprint": fingerprint(model.get_base_model()),
        "dtype": config.model.dtype,
        "quantization": config.model.quantization,
        "attributes": config.attributes,
        "trained_length": config.model.max_length,
        "max_length": model.config.get_text_config().max_position_embeddings,
        "template_date": config.model.template_date,
        "template_hash": chat.template_hash,
    }
    with atomic_folder(final) as folder:
        model.save_pretrained(str(folder))
        chat.tokenizer.save_pretrained(folder)
        (folder / "reward.json").write_text(json.dumps(card, indent=1))
        (folder / "README.md").write_text(_card_text(config, card))


def _card_text(config: RewardConfig, card: Mapping[str, object]) -> str:
    attributes = ", ".join(config.attributes)
    stages = "\n".join(
        f"- {s.name}: regression x {s.regression_weight:g}, "
        f"{s.preference_loss} Bradley-Terry x {s.preference_weight:g}"
        for s in config.stages
    )
    sources = "\n".join(
        f"- {s.path} ({s.format}, {s.split})" for s in (*config.data.ratings, *config.data.preferences)
    )
    return f"""---
base_model: {config.model.base}
library_name: peft
pipeline_tag: text-classification
---
# Reward model

A LoRA adapter and a linear head with the outputs {attributes}; the first is the reward, read at the last token
of the rendered conversation. Rewards compare answers to one prompt, not answers to different prompts.

Stages:
{stages}

Data:
{sources}

SHA-256 of the chat template with the date {card["template_date"]}: {card["template_hash"]}

```python
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

base = AutoModelForSequenceClassification.from_pretrained(BASE, num_labels={len(config.attributes)})
model = PeftModel.from_pretrained(base, FOLDER)  # logits[:, 0] is the reward
```
"""
