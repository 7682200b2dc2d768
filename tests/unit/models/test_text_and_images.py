"""A model of text and images is refused, and the command that writes its text model works."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import architectures
import pytest
import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Qwen2VLConfig, Qwen3_5Config

from rlhf.core.errors import ModelError
from rlhf.models import bases
from rlhf.models.chat import Chat
from rlhf.models.loading import load_causal
from rlhf.models.loading_errors import require_text_only
from rlhf.plan.memory.shapes import load_shape

TEXT = {
    "vocab_size": architectures.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
IDS = torch.arange(10, 30)[None]


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gemma3")
    config = Gemma3Config(
        text_config=TEXT,
        vision_config={**VISION, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    architectures.write_tokenizer(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    return folder


@pytest.mark.parametrize("attributes", [None, ["reward"]])
def test_it_is_refused(gemma3: Path, attributes: list[str] | None) -> None:
    config = bases.read_config(str(gemma3), None)
    with pytest.raises(ModelError, match="images"):
        bases.examine(
            config,
            str(gemma3),
            revision=None,
            quantization="none",
            adapter={"targets": "all-linear"},
            attributes=attributes,
        )
    with pytest.raises(ModelError, match="images"):  # by the plan and the doctor
        load_shape(str(gemma3))
    with pytest.raises(ModelError, match="images"):  # by commands without a config
        load_causal(str(gemma3), revision=None, dtype="float32", quantization="none")


def test_the_command_writes_its_text_model(
    gemma3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError) as caught:
        load_shape(str(gemma3))
    monkeypatch.chdir(tmp_path)
    python, option, code = shlex.split(caught.value.fix.partition(": ")[2])
    assert (python, option) == ("python", "-c")
    exec(code, {})
    model = load_causal(str(tmp_path / "TEXT"), revision=None, dtype="float32", quantization="none").eval()
    whole = Gemma3ForConditionalGeneration.from_pretrained(gemma3, dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.allclose(model(input_ids=IDS).logits, whole(input_ids=IDS).logits, atol=1e-5)
    assert {2, 7} <= set(Chat.load(str(tmp_path / "TEXT")).stop_ids)
    assert (
        bases.examine(
            bases.read_config(str(tmp_path / "TEXT"), None),
            str(tmp_path / "TEXT"),
            revision=None,
            quantization="none",
            adapter={"targets": "all-linear"},
            attributes=None,
        )
        == []
    )


def test_one_whose_text_model_transformers_loads_is_a_policys_base() -> None:
    config = Qwen3_5Config()
    require_text_only(config, "base", classifier=False)
    with pytest.raises(ModelError, match="images"):  # its classifier has the image layers
        require_text_only(config, "base", classifier=True)


def test_one_without_a_text_class_names_no_command(tmp_path: Path) -> None:
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4}
    Qwen2VLConfig(text_config=TEXT, vision_config=vision).save_pretrained(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_shape(str(tmp_path))
    assert "images" in caught.value.found and "python" not in caught.value.fix
