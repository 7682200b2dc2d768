from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from policy.evaluation.speaker import Speaker
from reward.load_scorer import load_scorer
from reward.save import save_final
from reward.training.build import build_model
from rlhf.config.reward import RewardConfig
from rlhf.core.errors import ModelError
from rlhf.core.records import HELPSTEER_ATTRIBUTES, Message
from rlhf.doctor.facts import Trouble
from rlhf.doctor.run_facts import _trained_in
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


def test_untrained_outputs_are_in_the_card_of_the_model(
    tiny_base: Path, tiny_chat: Chat, tmp_path: Path
) -> None:
    settings = config(tiny_base)
    save_final(settings, build_model(settings, tiny_chat), tiny_chat, tmp_path / "final", ["verbosity"])
    card = json.loads((tmp_path / "final" / "reward.json").read_text())
    assert (len(card["attributes"]), card["untrained"]) == (5, ["verbosity"])
    text = (tmp_path / "final" / "README.md").read_text()
    assert "verbosity" not in text and "complexity" in text
    assert "num_labels=5" in text  # the head's rows in the file


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


def test_a_model_on_a_relative_base_is_used_from_any_directory(
    tiny_base: Path, tiny_chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_base.parent)
    folder = tmp_path / "final"
    settings = config(Path(tiny_base.name))
    save_final(settings, build_model(settings, tiny_chat), tiny_chat, folder)
    named = {
        json.loads((folder / "reward.json").read_text())["base"],
        json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"],
    }
    assert named == {str(tiny_base)}
    assert repr(str(tiny_base)) in (folder / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    [score] = load_scorer("final").score([(Message("user", "Hi."), Message("assistant", "Yes."))])
    assert score.reward == 0  # a new head is zero
    monkeypatch.chdir(tiny_base.parent)
    trained = _trained_in("start", str(folder), tiny_base.name)
    assert not isinstance(trained.card, Trouble)
    assert trained.card["base"] == tiny_base.name  # the config's name of the same folder
    assert Speaker.read(tiny_base.name).model["base"] == str(tiny_base)


def test_a_base_that_is_gone_is_named_with_its_model(tiny_reward: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_reward, tmp_path / "final"))
    card = json.loads((folder / "reward.json").read_text()) | {"base": "/gone/base"}
    (folder / "reward.json").write_text(json.dumps(card))
    with pytest.raises(ModelError) as caught:
        load_scorer(folder)
    assert caught.value.found.startswith(f"The base of {folder}, '/gone/base', ")
    assert str(folder / "reward.json") in caught.value.fix
