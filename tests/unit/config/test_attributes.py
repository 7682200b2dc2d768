"""The outputs of the head where a config names none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf.config.reward import RewardConfig
from rlhf.core.records import HELPSTEER_ATTRIBUTES

FIVE, ONE, TWO = list(HELPSTEER_ATTRIBUTES), ["helpfulness"], ["style", "wit"]
PAIRS = {"preferences": [{"path": "a.jsonl"}]}
RATINGS = {"ratings": [{"path": "b.jsonl"}]}


def config(folder: Path, data: Any, **more: Any) -> RewardConfig:
    stage = {"name": "pairs", "preference_weight": 1}
    return RewardConfig.model_validate(
        {"output": str(folder / "run"), "data": data, "stages": [stage], **more}
    )


@pytest.mark.parametrize(
    ("data", "more", "expected"),
    [
        (PAIRS, {}, ONE),
        ({**PAIRS, "ratings": []}, {}, ONE),
        ({**PAIRS, **RATINGS}, {}, FIVE),
        (PAIRS, {"attributes": TWO}, TWO),
        (PAIRS, {"attributes": FIVE}, FIVE),
        (PAIRS, {"start": "no/such/folder"}, ONE),  # reported by check_start
    ],
)
def test_without_ratings_the_head_has_the_reward_alone(
    tmp_path: Path, data: Any, more: dict[str, Any], expected: list[str]
) -> None:
    settings = config(tmp_path, data, **more)
    assert settings.attributes == expected
    assert RewardConfig.model_validate(settings.model_dump(mode="json")) == settings
    assert RewardConfig(**settings.model_dump(exclude={"attributes"})).attributes == expected or more


@pytest.mark.parametrize("card", ["final/reward.json", "checkpoints/model/reward.json"])
def test_the_start_model_has_its_outputs(tmp_path: Path, card: str) -> None:
    file = tmp_path / card
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"attributes": TWO}))
    start = tmp_path / ("final" if card.startswith("final") else "checkpoints/step-2")
    assert config(tmp_path, PAIRS, start=str(start)).attributes == TWO
    assert config(tmp_path, PAIRS, start=str(start), attributes=ONE).attributes == ONE
    assert config(tmp_path, {**PAIRS, **RATINGS}, start=str(start)).attributes == FIVE


def test_a_run_of_an_earlier_version_keeps_its_outputs(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / "config.yaml"
    file.write_text(yaml.safe_dump({"attributes": FIVE}))
    assert config(tmp_path, PAIRS).attributes == FIVE
    assert config(tmp_path, PAIRS, attributes=ONE).attributes == ONE
    for faulty in ("attributes: []", "- a list", "a: [", ""):
        file.write_text(faulty)
        assert config(tmp_path, PAIRS).attributes == ONE
