"""Beginning from another reward model: its adapter and its head, as NeMo-Aligner's `load_rm_head_weights=True`."""

from __future__ import annotations

from pathlib import Path

from rlhf.adapters import start
from rlhf.adapters.storage import HEAD_WEIGHT, RewardAdapter
from rlhf.config.reward import RewardConfig
from rlhf.models.chat import Chat
from rlhf.models.loading import PeftModel


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
        others={"attributes": (before.card["attributes"], config.attributes)},
        beside={HEAD_WEIGHT: before.head_AD},
    )
