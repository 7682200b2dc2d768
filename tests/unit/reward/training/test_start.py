"""`start`: training begins with another reward model's adapter and head, or one error names what differs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from reward.scorer import Scorer
from reward.training.build import build_model
from reward.training.start import check_start, start_from
from rlhf.config.reward import RewardConfig
from rlhf.core.errors import ModelError
from rlhf.core.records import HELPSTEER_ATTRIBUTES, Message
from rlhf.models.chat import Chat
from rlhf.models.loading import PeftModel

CONVERSATION = (Message("user", "Hi."), Message("assistant", "Hello there."))


def config(base: Path, start: Path, **more: Any) -> RewardConfig:
    return RewardConfig.model_validate(
        {
            "output": "unused",
            "model": {"base": str(base), "dtype": "float32", "max_length": 256},
            "adapter": {"rank": 4, "alpha": 8},
            "data": {"ratings": [{"path": "demo", "format": "helpsteer2"}]},
            "stages": [{"name": "regression", "regression_weight": 1}],
            "start": str(start),
            **more,
        }
    )


def scores(model: PeftModel, chat: Chat) -> list[float]:
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([chat.conversation_ids(CONVERSATION)])).logits
    return list(logits[0].tolist())


def test_the_model_scores_as_the_one_it_starts_from(
    tiny_base: Path, tiny_chat: Chat, tiny_reward: Path
) -> None:
    settings = config(tiny_base, tiny_reward)
    model = build_model(settings, tiny_chat)
    assert scores(model, tiny_chat) == [0.0] * len(HELPSTEER_ATTRIBUTES)
    start_from(tiny_reward, settings, model, tiny_chat)
    (score,) = Scorer.load(tiny_reward).score([CONVERSATION])
    assert scores(model, tiny_chat) == pytest.approx(list(score.attributes.values()), abs=1e-5)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 7 * 2 + 1 and all(p.dtype == torch.float32 for p in trained.values())


def test_every_difference_is_named_at_once(tiny_base: Path, tiny_chat: Chat, tiny_reward: Path) -> None:
    settings = config(
        tiny_base,
        tiny_reward,
        adapter={"rank": 8, "alpha": 4, "targets": ["q_proj"]},
        attributes=["helpfulness"],
        model={"base": str(tiny_base), "dtype": "float32", "max_length": 256, "template_date": "1 Jan 2030"},
    )
    chat = Chat(tiny_chat.tokenizer, stop_ids=tiny_chat.stop_ids, template_date="1 Jan 2030")
    model = build_model(settings, chat)
    before = scores(model, chat)
    with pytest.raises(ModelError, match=str(tiny_reward)) as caught:
        start_from(tiny_reward, settings, model, chat)
    lines = caught.value.found.splitlines()
    for key, values in {
        "adapter.rank": ("4", "8"),
        "adapter.alpha": ("8.0", "4.0"),
        "adapter.targets": ("['q_proj']",),
        "attributes": ("['helpfulness']",),
        "chat template": (tiny_chat.template_hash[:12],),
    }.items():
        (line,) = [line for line in lines if f"{key}: " in line]
        assert all(value in line for value in values)
    assert "base:" not in caught.value.found
    assert caught.value.exit_code == 2
    assert scores(model, chat) == before  # nothing was changed


def test_another_base(other_base: Path, tiny_chat: Chat, tiny_reward: Path) -> None:
    settings = config(other_base, tiny_reward)
    with pytest.raises(ModelError, match="base: [0-9a-f]{16} .*[0-9a-f]{16}"):
        start_from(tiny_reward, settings, build_model(settings, tiny_chat), tiny_chat)


def test_other_settings_are_found_before_a_model_is_loaded(
    tiny_base: Path, tiny_chat: Chat, tiny_reward: Path
) -> None:
    with pytest.raises(ModelError) as caught:
        check_start(config(tiny_base, tiny_reward, adapter={"rank": 8, "alpha": 4}), tiny_chat)
    assert caught.value.fix == "adapter.rank=4 adapter.alpha=8"
    check_start(config(tiny_base, tiny_reward), tiny_chat)


@pytest.mark.parametrize(
    ("key", "value", "fix"),
    [
        ("use_rslora", True, "rlhf export"),
        ("use_dora", True, "merge_and_unload"),
        ("alpha_pattern", {"q_proj": 32}, "merge_and_unload"),  # its scales would be lost
        ("rank_pattern", {"q_proj": 2}, "merge_and_unload"),
        ("target_modules", ".*q_proj", "merge_and_unload"),
    ],
)
def test_other_kinds_of_lora_are_found_before_a_model_is_loaded(
    tiny_base: Path, tiny_chat: Chat, tiny_reward: Path, tmp_path: Path, key: str, value: Any, fix: str
) -> None:
    folder = Path(shutil.copytree(tiny_reward, tmp_path / "final"))
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(ModelError) as caught:
        check_start(config(tiny_base, folder), tiny_chat)
    assert fix in caught.value.fix
