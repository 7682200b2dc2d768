"""An error for the wrong kind of model names the key or command that takes the folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rlhf.adapters.storage import RewardAdapter, read_policy
from rlhf.core.errors import ModelError
from rlhf.models.bases import refuse_adapter

ADAPTER = {"adapter_config.json": {"peft_type": "LORA", "base_model_name_or_path": "base"}}
CLASSIFIER_ADAPTER = {"adapter_config.json": {**ADAPTER["adapter_config.json"], "task_type": "SEQ_CLS"}}
CONTENTS: Mapping[str, Mapping[str, Any]] = {
    "reward": ADAPTER | {"reward.json": {"base": "base"}},
    "policy": ADAPTER | {"policy.json": {"base": "base"}},
    "principle": ADAPTER | {"principle.json": {"base": "base"}},
    "justifier": ADAPTER | {"justifier.json": {"base": "base"}},
    "adapter": ADAPTER,
    "classifier_adapter": CLASSIFIER_ADAPTER,
    "classifier": {"config.json": {"architectures": ["LlamaForSequenceClassification"]}},
    "causal": {"config.json": {"architectures": ["LlamaForCausalLM"]}},
}


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of each kind in the working directory, without weights."""
    monkeypatch.chdir(tmp_path)
    for name, files in CONTENTS.items():
        Path(name).mkdir()
        for file, content in files.items():
            (Path(name) / file).write_text(json.dumps(content))


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize(
    ("folder", "fix"),
    [
        ("reward", "reward=reward"),
        ("principle", "{principle: principle,"),
        ("justifier", "--form justifier"),
        ("adapter", "model.base=MERGED"),
        ("classifier_adapter", "{classifier: MERGED}"),
        ("classifier", "{classifier: classifier}"),
        ("causal", "model.base=causal"),
    ],
)
def test_a_start_of_another_kind(folder: str, fix: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_policy(Path(folder))
    assert fix in caught.value.fix and "CONFIG.yaml" not in caught.value.fix
    assert "complete model" not in caught.value.allowed  # `start` takes none


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize(("folder", "fix"), [("policy", "start=policy"), ("classifier", "{classifier:")])
def test_a_reward_of_another_kind(folder: str, fix: str) -> None:
    with pytest.raises(ModelError) as caught:
        RewardAdapter.read(Path(folder))
    assert fix in caught.value.fix and "CONFIG.yaml" not in caught.value.fix


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize(
    ("folder", "fixes"),
    [
        ("reward", ("align-policy: reward=reward", "train-reward: start=reward", "model.base=base")),
        ("policy", ("align-policy or train-dpo: start=policy", "model.base=base")),
        ("principle", ("train-principle: start=principle", "model.base=base")),
        ("classifier_adapter", ("AutoPeftModelForSequenceClassification", "{classifier: MERGED}")),
    ],
)
def test_a_base_that_is_an_adapter(folder: str, fixes: tuple[str, ...]) -> None:
    with pytest.raises(ModelError) as caught:
        refuse_adapter(folder, None)
    assert all(fix in caught.value.fix for fix in fixes)


@pytest.mark.usefixtures("folders")
def test_an_incomplete_folder_of_the_right_kind_is_named() -> None:
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors is missing"):
        RewardAdapter.read(Path("reward"))
