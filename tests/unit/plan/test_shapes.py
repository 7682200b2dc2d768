from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from rlhf.core.errors import ModelError
from rlhf.models.embedded import embedded_model
from rlhf.plan.memory.shapes import PACKAGED, load_shape


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


def test_a_torn_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    with pytest.raises(ModelError, match="model_type"):
        load_shape(str(tmp_path))
