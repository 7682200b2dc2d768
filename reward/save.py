"""Write `final/` of a reward run: adapter and head, tokenizer, reward.json and a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from reward.card import card_text
from rlhf.config.reward import RewardConfig
from rlhf.distributed import processes
from rlhf.models.card import CARD
from rlhf.models.chat import Chat
from rlhf.models.loading import PeftModel, fingerprint
from rlhf.runs.checkpoints import trainable_state
from rlhf.runs.folder import atomic_folder


def save_final(
    config: RewardConfig,
    model: PeftModel,
    chat: Chat,
    final: Path,
    extrapolated: Mapping[str, object] | None = None,
) -> None:
    """Write the folder atomically; all processes must call.

    Args:
        extrapolated: the models and the factor that ExPO combined, if it did.
    """
    card = {
        "base": config.model.base,
        "revision": config.model.revision,
        "fingerprint": fingerprint(model.get_base_model()),
        "dtype": config.model.dtype,
        "quantization": config.model.quantization,
        "packing": config.model.packing,
        "attributes": config.attributes,
        "trained_length": config.model.max_length,
        "max_length": model.config.get_text_config().max_position_embeddings,
        **chat.card(),
        "pad_id": chat.scoring_pad_id,
        "reasoning": chat.reasoning,
    } | ({"extrapolated": extrapolated} if extrapolated else {})
    weights = trainable_state(model)

    def write() -> None:
        with atomic_folder(final) as folder:
            model.save_pretrained(str(folder), state_dict=weights)
            chat.save_tokenizer(folder)
            (folder / "reward.json").write_text(json.dumps(card, indent=1), encoding="utf-8")
            (folder / CARD).write_text(card_text(config, card, final), encoding="utf-8")

    processes.on_main(write)
