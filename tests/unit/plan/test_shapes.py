from __future__ import annotations

import json
from pathlib import Path

import architectures
import pytest
from transformers import AutoConfig

from rlhf.config.load import load_config
from rlhf.config.policy import PolicyConfig
from rlhf.core.errors import ModelError
from rlhf.models.embedded import embedded_model
from rlhf.plan.memory.shapes import PACKAGED, load_shape, shape_of


def test_the_packaged_embedded_shape_is_the_model_s_own() -> None:
    values = AutoConfig.from_pretrained(embedded_model()).to_dict()
    packaged = load_shape("embedded").to_dict()
    assert {key: values[key] for key in PACKAGED["embedded"]} == {
        key: packaged[key] for key in PACKAGED["embedded"]
    }
    assert values["head_dim"] == packaged["head_dim"]


def test_a_folder_s_config_is_read(tiny_base: Path) -> None:
    assert load_shape(str(tiny_base)).hidden_size == 64


def test_an_unknown_model_says_what_is_known() -> None:
    with pytest.raises(ModelError) as error:
        load_shape("meta-llama/Llama-3.1-8B-Instuct")
    assert "'meta-llama/Llama-3.1-8B-Instruct'" in error.value.found
    assert "meta-llama/Llama-3.1-70B-Instruct" in error.value.allowed


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_shape(str(tmp_path))
    assert caught.value.found == f"The folder {tmp_path} has no config.json."


def test_a_torn_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    with pytest.raises(ModelError, match="model_type"):
        load_shape(str(tmp_path))


@pytest.mark.parametrize(
    ("family", "reason"), [("bloom", "scaled_dot_product_attention"), ("cohere", "logit")]
)
def test_a_plan_refuses_a_base_that_the_run_would_refuse(
    family: str, reason: str, policy_config: Path, tmp_path: Path
) -> None:
    base = architectures.build(family, tmp_path / family)
    config = load_config(policy_config, PolicyConfig, [f"model.base={base}", "model.max_length=256"])
    with pytest.raises(ModelError) as caught:
        shape_of(config)
    assert reason in caught.value.found


def test_a_plan_of_an_adapter_names_the_merge(policy_config: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "x", "peft_type": "LORA"}')
    config = load_config(policy_config, PolicyConfig, [f"model.base={tmp_path}"])
    with pytest.raises(ModelError) as caught:
        shape_of(config)
    assert "merge_and_unload" in caught.value.fix
