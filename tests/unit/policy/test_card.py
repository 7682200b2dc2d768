"""The model card of a policy: method, data, figures, and code that runs as a reader would copy it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from policy.card import card_text, write_card
from rlhf.config.policy import PolicyConfig
from rlhf.core.records import Message, Prompt
from rlhf.data.drops import DropReport

FINAL = Path("runs/demo/policy/final")


def config(**settings: Any) -> PolicyConfig:
    return PolicyConfig.model_validate(
        {"output": "runs/p", "reward": "runs/r/final", "data": {"prompts": [{"path": "demo"}]}, **settings}
    )


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("reinforce", "by REINFORCE with a leave-one-out baseline over 4 answers a prompt"),
        ("rloo", "by RLOO with a leave-one-out baseline over 4 answers a prompt"),
        ("ppo", "by PPO with a critic on the same base and 4 answers a prompt"),
    ],
)
def test_the_card_names_the_algorithm(name: str, method: str) -> None:
    assert method in card_text(config(algorithm={"name": name}), FINAL)
    begun = card_text(config(algorithm={"name": name}, start="runs/1/final"), FINAL)
    assert "started from the policy `runs/1/final`, which is also the reference" in begun


def test_the_embedded_base_has_its_real_name_and_license() -> None:
    card = ModelCard(card_text(config(model={"base": "embedded"}), FINAL))
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "peft")
    assert "Not evaluated yet." in card.text and str(FINAL) in card.text


def test_data_and_figures_are_written_after_the_evaluation(tmp_path: Path) -> None:
    prompts = [Prompt((Message("user", f"Q{n}"),), source="demo") for n in range(1200)]
    drops = DropReport(read=1300)
    for place in range(7):
        drops.drop("too long", f"row {place}")
    evaluation = {
        "before": {"reward": 1.0, "gold": None, "kl": 0.0, "length": 20.0},
        "after": {"reward": 1.5, "gold": None, "kl": 0.25, "length": 18.0},
        "difference": {
            "reward": {"mean": 0.5, "ci95": [0.25, 0.75]},
            "gold": None,
            "kl": {"mean": 0.25, "ci95": [0.2, 0.3]},
            "length": {"mean": -2.0, "ci95": None},  # as of a single prompt
        },
        "prompts": 64,
        "samples": 2,
    }
    write_card(tmp_path, config(), prompts, drops, evaluation)
    text = (tmp_path / "README.md").read_text()
    for line in (
        "- Training: 1,200 prompts of demo",
        "- Rows: 1,300 read, 1,293 kept; dropped: 7 too long",
        "64 held-out prompts, 2 answers each",
        "| reward | 1 | 1.5 | +0.5 | +0.25 to +0.75 |",
        "| length, tokens | 20 | 18 | -2 |  |",
    ):
        assert line in text
    assert "gold" not in text.partition("## Figures")[2]


@pytest.mark.parametrize("whole", [False, True])
def test_the_code_on_the_card_is_python(whole: bool) -> None:
    keys: dict[str, Any] = {"adapter": None} if whole else {}
    text = card_text(config(model={"base": "some/base", "revision": "v1"}, **keys), FINAL)
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    compile(block, "card", "exec")
    assert ("PeftModel" in block) != whole and ("revision='v1'" in block) != whole
    assert yaml.safe_load(text.split("---\n")[1])["library_name"] == ("transformers" if whole else "peft")
