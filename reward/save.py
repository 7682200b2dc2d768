"""Write `final/` of a reward run: adapter and head, tokenizer, reward.json and a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from reward.card import card_text
from rlhf.config.reward import RewardConfig
from rlhf.models.card import CARD
from rlhf.models.chat import Chat
from rlhf.models.loading import PeftModel
from rlhf.models.saving import base_facts, write_adapter_folder


def save_final(
    config: RewardConfig,
    model: PeftModel,
    chat: Chat,
    final: Path,
    untrained: Sequence[str] = (),
    extrapolated: Mapping[str, object] | None = None,
) -> None:
    """Write the folder atomically; all processes must call.

    Args:
        untrained: attributes that nothing has trained; readers leave their scores out.
        extrapolated: the models and the factor that ExPO combined, if it did.
    """
    card = {
        **base_facts(config.model, model, chat),
        "packing": config.model.packing,
        "attributes": config.attributes,
        "trained_length": config.model.max_length,
        "max_length": model.config.get_text_config().max_position_embeddings,
        "pad_id": chat.scoring_pad_id,
        "reasoning": chat.reasoning,
        **({"untrained": list(untrained)} if untrained else {}),
        **({"extrapolated": extrapolated} if extrapolated else {}),
    }
    write_adapter_folder(
        final,
        model,
        chat,
        lambda: {"reward.json": json.dumps(card, indent=1), CARD: card_text(config, card, final)},
    )
