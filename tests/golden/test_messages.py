"""The wording of ten error messages, whole: `UPDATE_GOLDEN=1 pytest tests/golden/test_messages.py` writes the
file.

This is the only test of wording; all others check classes, exit codes and facts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf.config.load import load_config
from rlhf.config.policy import PolicyConfig
from rlhf.config.reward import RewardConfig
from rlhf.config.schema import DataSource
from rlhf.core.errors import RlhfError
from rlhf.data.load import load_preferences
from rlhf.models.bases import read_config

GOLDEN = Path(__file__).parent / "messages.txt"
REWARD = """\
output: runs/x
model: {base: embedded}
data: {ratings: [{path: demo, format: helpsteer2}]}
stages:
  - name: first
    regression_weight: 1
"""


def config(*overrides: str, text: str = REWARD) -> Callable[[], object]:
    def load() -> object:
        Path("reward.yaml").write_text(text)
        return load_config(Path("reward.yaml"), RewardConfig, overrides)

    return load


def policy(*overrides: str) -> Callable[[], object]:
    def load() -> object:
        Path("policy.yaml").write_text(
            "output: runs/x\nreward: runs/r/final\ndata: {prompts: [{path: demo}]}\n"
        )
        return load_config(Path("policy.yaml"), PolicyConfig, overrides)

    return load


def rows(row: dict[str, Any]) -> Callable[[], object]:
    def load() -> object:
        Path("pairs.jsonl").write_text(json.dumps(row) + "\n")
        return load_preferences([DataSource(path="pairs.jsonl")], seed=0, max_spread=2)

    return load


def model(settings: dict[str, Any]) -> Callable[[], object]:
    def load() -> object:
        Path("model").mkdir()
        Path("model/config.json").write_text(json.dumps(settings))
        return read_config("model", None)

    return load


LONG = "Explain this. " * 40
PAIR = {"prompt": [{"role": "user", "content": LONG}], "chosen": "A", "rejected": "B"}
CASES: dict[str, Callable[[], object]] = {
    "an unknown key": config(text=REWARD.replace("regression_weight", "regression_wieght")),
    "a value out of range": config("adapter.rank=0"),
    "a choice with a typo": config("model.dtype=bflot16"),
    "YAML that is not valid": config(text=REWARD.replace("runs/x", "runs/x: y")),
    "an override of a missing item": config("stages.3.epochs=2"),
    "a circular extends": config(text=f"extends: reward.yaml\n{REWARD}"),
    "a combination that is not allowed": policy("algorithm.name=rloo", "algorithm.reduction=token_mean"),
    "a message with an unknown role": rows(
        {**PAIR, "prompt": [{"content": LONG, "role": "usr", "id": LONG}]}
    ),
    "a row without a column": rows({"prompt": "x", "choosen": "A", "rejected": "B"}),
    "a model with its own code": model(
        {"model_type": "custom", "auto_map": {"AutoConfig": "configuration_custom.CustomConfig"}}
    ),
}


def test_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = []
    for name, raise_error in CASES.items():
        folder = tmp_path / name.replace(" ", "-")
        folder.mkdir()
        monkeypatch.chdir(folder)
        with pytest.raises(RlhfError) as raised:
            raise_error()
        assert raised.value.exit_code == 2
        text = str(raised.value).replace(f"{folder}/", "")
        messages.append(f"# {name}: {type(raised.value).__name__}\n{text}\n")
    text = "\n".join(messages)
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")
