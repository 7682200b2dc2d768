"""Rewards that cannot work are refused before a model is loaded: checks of the gold score, classifiers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from policy.rewards.precheck import check_sources
from rlhf.config.policy import PolicyConfig
from rlhf.core.errors import DataError, ModelError
from rlhf.core.records import Message, Prompt
from rlhf.data.checks import CONSTRAINTS
from rlhf.data.load import load_prompts

MESSAGES = (Message("user", "Tell me about tea."),)


def config(tmp_path: Path) -> PolicyConfig:
    settings: dict[str, Any] = {
        "output": tmp_path,
        "reward": {"function": "gold"},
        "data": {"prompts": [{"path": "demo", "limit": 20}]},
    }
    return PolicyConfig.model_validate(settings)


def test_the_demos_prompts_have_checks_of_known_families(tmp_path: Path) -> None:
    settings = config(tmp_path)
    prompts, _ = load_prompts(settings.data.prompts)
    assert {prompt.check["family"] for prompt in prompts if prompt.check} <= CONSTRAINTS.keys()
    check_sources(settings, None, prompts)  # type: ignore[arg-type]


def test_a_known_check_may_also_be_a_column_for_reward_functions(tmp_path: Path) -> None:
    check = {"family": "words", "limit": 7}
    check_sources(config(tmp_path), None, [Prompt(MESSAGES, check=check, columns={"check": check})])  # type: ignore[arg-type]


@pytest.mark.parametrize("custom", [{"family": "sum"}, "4", {"answer": 4}])
def test_a_custom_check_is_refused(tmp_path: Path, custom: Any) -> None:
    with pytest.raises(DataError) as caught:
        check_sources(config(tmp_path), None, [Prompt(MESSAGES, columns={"check": custom})])  # type: ignore[arg-type]
    assert all(family in str(caught.value.allowed) for family in CONSTRAINTS)
    assert "function" in str(caught.value.fix)


@pytest.fixture(scope="module")
def classifier(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sequence classifier of the classes `bad` and `good`."""
    folder = tmp_path_factory.mktemp("models") / "classifier"
    config = LlamaConfig.from_pretrained(tiny_base, id2label={0: "bad", 1: "good"})
    LlamaForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(folder)
    return folder


def check_classifier(tmp_path: Path, folder: Path, **reward: Any) -> None:
    settings = config(tmp_path).model_dump() | {"reward": {"classifier": str(folder), **reward}}
    check_sources(PolicyConfig.model_validate(settings), None, [])  # type: ignore[arg-type]


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def without_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def as_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"task_type": "SEQ_CLS", "peft_type": "LORA"}))


def test_a_classifier_with_a_label_is_accepted(classifier: Path, tmp_path: Path) -> None:
    check_classifier(tmp_path, classifier, label="good")


@pytest.mark.parametrize("label", [None, "goood"])
def test_a_classifier_without_its_label_is_refused(
    classifier: Path, tmp_path: Path, label: str | None
) -> None:
    with pytest.raises(ModelError) as caught:
        check_classifier(tmp_path, classifier, label=label)
    assert caught.value.allowed == "bad, good"


@pytest.mark.parametrize("damage", [without_weights, without_template, as_adapter])
def test_a_damaged_classifier_is_refused(
    classifier: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = Path(shutil.copytree(classifier, tmp_path / "copy"))
    damage(folder)
    with pytest.raises(ModelError, match=str(folder)):
        check_classifier(tmp_path, folder, label="good")


def test_a_language_model_is_refused_as_classifier(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="LlamaForCausalLM"):
        check_classifier(tmp_path, tiny_base)


@pytest.mark.parametrize("options", [{"label": "good"}, {"reasoning": "strip"}])
def test_options_of_a_classifier_are_refused_for_a_reward_model_of_ours(
    tiny_reward: Path, tmp_path: Path, options: dict[str, str]
) -> None:
    check_classifier(tmp_path, tiny_reward)
    with pytest.raises(ModelError):
        check_classifier(tmp_path, tiny_reward, **options)
