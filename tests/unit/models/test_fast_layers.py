"""`model.fast_layers: false` leaves every layer its own forward, in training and in what loads the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reward.save import save_final
from reward.scorer import Scorer
from reward.training.build import build_model
from rlhf.config.reward import RewardConfig
from rlhf.config.schema import ModelConfig
from rlhf.models.chat import Chat
from rlhf.models.loading import base_of, lora_config, with_adapter
from rlhf.models.trunk import load_trunk


def patched(model: Any) -> list[str]:
    """Layers with a method of their own; the base itself has one, which returns packed scores."""
    methods = {"forward", "_cast_input_dtype"}
    return [
        name
        for name, layer in model.named_modules()
        if layer is not base_of(model) and methods & vars(layer).keys()
    ]


@pytest.mark.parametrize("fast", [True, False])
def test_one_key_switches_all_of_our_layers_off(fast: bool, tiny_base: Path, tmp_path: Path) -> None:
    base = ModelConfig(base=str(tiny_base), dtype="float32", max_length=256, fast_layers=fast)
    adapter = lora_config(rank=2, alpha=4, dropout=0.0, targets="all-linear")
    assert bool(patched(with_adapter(load_trunk(base), adapter))) == fast
    config = RewardConfig.model_validate(
        {
            "output": "unused",
            "model": base,
            "adapter": {"rank": 2},
            "data": {"ratings": [{"path": "demo", "format": "helpsteer2"}]},
            "stages": [{"name": "regression", "regression_weight": 1}],
        }
    )
    chat = Chat.of(config.model)
    model = build_model(config, chat)
    assert bool(patched(model)) == fast
    save_final(config, model, chat, tmp_path / "final")
    scorer = Scorer.load(tmp_path / "final")
    assert bool(patched(scorer.model)) == fast
