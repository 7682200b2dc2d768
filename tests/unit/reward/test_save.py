from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from reward.save import save_final
from reward.training.build import build_model
from rlhf.config.reward import RewardConfig
from rlhf.core.records import HELPSTEER_ATTRIBUTES
from rlhf.models.chat import Chat


def config(base: Path) -> RewardConfig:
    return RewardConfig.model_validate(
        {
            "output": "unused",
            "model": {"base": str(base), "dtype": "float32", "max_length": 128},
            "adapter": {"rank": 2, "alpha": 4},
            "data": {"ratings": [{"path": "demo", "format": "helpsteer2"}]},
            "stages": [{"name": "first", "regression_weight": 0.5}],
        }
    )


def test_the_folder_holds_all_that_a_reward_model_needs(
    tiny_reward: Path, tiny_base: Path, tiny_chat: Chat
) -> None:
    assert sorted(file.name for file in tiny_reward.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "reward.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    card = json.loads((tiny_reward / "reward.json").read_text())
    assert len(card.pop("fingerprint")) == 16
    assert card == {
        "base": str(tiny_base),
        "revision": None,
        "dtype": "float32",
        "quantization": "none",
        "fast_layers": True,
        "attributes": list(HELPSTEER_ATTRIBUTES),
        "trained_length": 256,
        "max_length": 512,  # of the base
        "template_date": "26 Jul 2024",
        "template_hash": tiny_chat.template_hash,
        "chat_template_kwargs": {},
        "pad_id": tiny_chat.pad_id,
        "reasoning": "keep",
        "packing": True,
    }
    weights = load_file(tiny_reward / "adapter_model.safetensors")
    assert weights["base_model.model.score.weight"].shape == (5, 64)
    # Megabytes of adapter, not a copy of the base: two layers of seven linear parts, A and B for each, and
    # the head.
    assert len(weights) == 2 * 7 * 2 + 1
    assert json.loads((tiny_reward / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS"


def test_a_failure_leaves_no_folder(
    tiny_base: Path, tiny_chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tiny_base)
    model = build_model(settings, tiny_chat)

    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(tiny_chat.tokenizer, "save_pretrained", fail)
    with pytest.raises(OSError, match="No space left"):
        save_final(settings, model, tiny_chat, tmp_path / "final")
    assert list(tmp_path.iterdir()) == []


def test_an_older_folder_is_replaced_as_a_whole(tiny_base: Path, tiny_chat: Chat, tmp_path: Path) -> None:
    settings = config(tiny_base)
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "stale.safetensors").touch()
    save_final(settings, build_model(settings, tiny_chat), tiny_chat, tmp_path / "final")
    assert not (tmp_path / "final" / "stale.safetensors").exists()
    assert (tmp_path / "final" / "reward.json").exists()
