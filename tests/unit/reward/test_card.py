"""The model card: its code is run as a reader would copy it, its figures are those of the evaluation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoTokenizer, LlamaForCausalLM

from reward.batches import Item
from reward.card import card_text, write_card
from reward.data import RewardData
from reward.recipe import build_model
from reward.save import save_final
from reward.scorer import Scorer
from rlhf.config.reward import RewardConfig
from rlhf.core.records import Message
from rlhf.data.drops import DropReport
from rlhf.kernels.packing import Tree
from rlhf.models.chat import Chat


def config(base: str, **model: Any) -> RewardConfig:
    return RewardConfig.model_validate(
        {
            "output": "unused",
            "model": {"base": base, "dtype": "float32", "max_length": 128, **model},
            "adapter": {"rank": 2, "alpha": 4},
            "data": {
                "ratings": [{"path": "demo", "format": "helpsteer2"}],
                "preferences": [{"path": "nvidia/HelpSteer2", "format": "helpsteer2-preference"}],
            },
            "stages": [{"name": "both", "regression_weight": 0.5, "preference_weight": 1}],
        }
    )


def items(pairs: int, rated: int) -> list[Item]:
    pair = Item(Tree((1,), ((2,), (3,))), ((None,), (None,)), 2, "nvidia/HelpSteer2")
    return [pair] * pairs + [Item(Tree((), ((1,),)), ((3.0,),), 0, "demo")] * rated


def result(overall: float, count: int) -> dict[str, Any]:
    return {
        "overall": overall,
        "count": count,
        "length_baseline": 0.5,
        "intervals": {"overall": [overall - 0.1, overall + 0.1]},
    }


def run_code(folder: Path) -> dict[str, Any]:
    """What a reader gets who copies the card's code."""
    (block,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    found: dict[str, Any] = {}
    exec(block, found)
    return found


def ours(folder: Path, found: Mapping[str, Any]) -> float:
    talk = tuple(Message(one["role"], one["content"]) for one in found["messages"])
    (score,) = Scorer.load(folder).score([talk])
    return score.reward


def randomised(told: RewardConfig, chat: Chat, folder: Path) -> Path:
    model = build_model(told, chat)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.2, generator=generator))
    save_final(told, model, chat, folder)
    return folder


def test_the_code_on_the_card_gives_our_reward(tiny_reward: Path) -> None:
    found = run_code(tiny_reward)
    assert found["reward"] == pytest.approx(ours(tiny_reward, found), abs=1e-4)
    assert abs(found["reward"]) > 0.01


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_so_it_does_in_bfloat16_and_in_4_bits(
    tiny_base: Path, tiny_chat: Chat, tmp_path: Path, quantization: str
) -> None:
    told = config(str(tiny_base), dtype="bfloat16", quantization=quantization)
    folder = randomised(told, tiny_chat, tmp_path / "final")
    found = run_code(folder)
    assert found["model"].get_base_model().dtype == torch.bfloat16
    assert found["reward"] == pytest.approx(ours(folder, found), abs=0.1, rel=0.05)


def test_a_template_with_a_date_writes_that_of_the_training(tiny_base: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    LlamaForCausalLM.from_pretrained(tiny_base).save_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = "{{ date_string | default('today') }}" + tokenizer.chat_template
    tokenizer.save_pretrained(base)
    told = config(str(base), template_date="1 Feb 2003")
    folder = randomised(told, Chat.load(base, template_date="1 Feb 2003"), tmp_path / "final")
    found = run_code(folder)
    assert found["reward"] == pytest.approx(ours(folder, found), abs=1e-4)
    assert found["tokenizer"].decode(found["ids"]["input_ids"][0]).startswith("1 Feb 2003")


def test_before_an_evaluation_the_card_claims_nothing(tiny_reward: Path, tiny_base: Path) -> None:
    text = (tiny_reward / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "base_model": str(tiny_base),
        "library_name": "peft",
        "pipeline_tag": "text-classification",
        "tags": ["reward-model"],
    }
    assert "Not evaluated yet." in body
    assert "- regression: 1 x regression; 1 epochs of batches of 64" in body
    assert "- demo (helpsteer2, train); **synthetic**: made by code, from a seed" in body


def test_sizes_and_figures_are_written_after_the_evaluation(
    tiny_base: Path, tiny_chat: Chat, tmp_path: Path
) -> None:
    told = config(str(tiny_base))
    save_final(told, build_model(told, tiny_chat), tiny_chat, tmp_path / "final")
    drops = DropReport(read=3000)
    for place in range(7):
        drops.drop("tie (strength 0)", f"row {place}")
    data = RewardData(items(1200, 40), items(3, 0), [], drops)
    evaluation = {**result(0.8, 126), "held_out": result(0.625, 57)}
    write_card(tmp_path / "final", told, data, evaluation)
    text = (tmp_path / "final" / "README.md").read_text()
    for line in (
        "- nvidia/HelpSteer2 (helpsteer2-preference, train); CC-BY-4.0",
        "- to learn from: 40 rated responses of demo",
        "- to learn from: 1,200 pairs of nvidia/HelpSteer2",
        "- to validate on: 3 pairs of nvidia/HelpSteer2",
        "- rows: 3,000 read, 2,993 kept; dropped: 7 tie (strength 0)",
        "- both: 0.5 x regression + 1 x scaled Bradley-Terry; 1 epochs",
        "| held-out pairs | 57 | 62.5 | 52.5 to 72.5 | 50.0 |",
        "| benchmark | 126 | 80.0 | 70.0 to 90.0 | 50.0 |",
        tiny_chat.template_hash,
    ):
        assert line in text
    run_code(tmp_path / "final")  # still runs
    write_card(tmp_path / "final", told, data, result(0.625, 57))  # no benchmark was named
    text = (tmp_path / "final" / "README.md").read_text()
    assert "| held-out pairs | 57 |" in text and "| benchmark |" not in text
    write_card(tmp_path / "final", told, data, {})
    assert "No pairs were held out" in (tmp_path / "final" / "README.md").read_text()


def test_the_embedded_base_has_its_real_name_and_licence(tmp_path: Path) -> None:
    card = {
        "base": "embedded", "revision": None, "fingerprint": "f" * 16, "dtype": "bfloat16", "quantization": "none",
        "attributes": ["helpfulness"], "trained_length": 128, "max_length": 8192, "template_date": "26 Jul 2024",
        "template_hash": "0" * 64,
    }  # fmt: skip
    text = card_text(config("embedded"), card, tmp_path)
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct\n" in text
    assert "licence: Apache-2.0; that of the base, and those of the data" in text
    assert "date_string" not in text
