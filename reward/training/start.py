"""Start from another reward model's adapter and head, as NeMo-Aligner's `load_rm_head_weights=True`."""

from __future__ import annotations

from pathlib import Path

from rlhf.adapters import start
from rlhf.adapters.storage import HEAD_WEIGHT, RewardAdapter
from rlhf.config.reward import RewardConfig
from rlhf.core.errors import ModelError
from rlhf.models.chat import Chat
from rlhf.models.loading import PeftModel


def check_start(config: RewardConfig, chat: Chat) -> None:
    """Check before loading that `start` is a reward model with the same adapter, template and attributes.

    Raises:
        ModelError: it is not a reward model, or has another adapter, template or attributes.
    """
    if config.start is None:
        return
    before = RewardAdapter.read(Path(config.start))
    start.check_adapter(Path(config.start), before.lora, config.adapter)
    before.lora.check_template(chat)
    if list(before.card["attributes"]) != config.attributes:
        raise ModelError(
            f"start: the reward model in {config.start} has the attributes "
            f"{', '.join(before.card['attributes'])}, this run {', '.join(config.attributes)}.",
            allowed="the same attributes in the same order",
            fix=f"attributes=[{','.join(before.card['attributes'])}]",
        )


def trained_before(config: RewardConfig) -> list[str]:
    """The outputs of the `start` model that were trained; none without `start`.

    Raises:
        ModelError: it is not a reward model.
    """
    return [] if config.start is None else RewardAdapter.read(Path(config.start)).attributes


def start_from(folder: Path, config: RewardConfig, model: PeftModel, chat: Chat) -> None:
    """Give a fresh reward model the weights of the one in a folder.

    Raises:
        ModelError: no reward model there, or it differs in what cannot differ; every difference is named.
    """
    before = RewardAdapter.read(folder)
    start.start_from(
        folder,
        before.lora,
        model,
        chat,
        others={
            "attributes": (before.card["attributes"], config.attributes),
            "reasoning": (before.card.get("reasoning", "keep"), config.reasoning),
        },
        beside={HEAD_WEIGHT: before.head_AD},
    )
