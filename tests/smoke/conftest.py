"""What several commands are tried with."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def embedded_reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model on the embedded base with a fresh adapter and a random head."""
    import torch

    from reward.save import save_final
    from reward.training.build import build_model
    from reward.training.data import load_chat
    from rlhf.config.reward import RewardConfig
    from rlhf.models.loading import reward_head

    config = RewardConfig.model_validate(
        {
            "output": "unused",
            "adapter": {"rank": 4},
            "data": {"ratings": [{"path": "demo", "format": "helpsteer2"}]},
            "stages": [{"name": "ratings", "regression_weight": 1}],
        }
    )
    chat = load_chat(config)
    model = build_model(config, chat)
    weight, generator = reward_head(model).weight, torch.Generator().manual_seed(0)
    with torch.no_grad():  # drawn on the CPU, wherever the model is
        weight.copy_(torch.empty(weight.shape).normal_(std=0.05, generator=generator))
    folder = tmp_path_factory.mktemp("reward") / "final"
    save_final(config, model, chat, folder)
    return folder
