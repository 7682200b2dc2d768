"""Bases that cannot be used are refused before weights are loaded, each with its cause."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import architectures
import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel

from rlhf.core.errors import ModelError
from rlhf.models import bases, stored
from rlhf.models.loading import load_causal, load_classifier

NO_SDPA = ("bloom", "falcon_alibi", "gpt_neo", "gpt_oss", "gptj", "mamba", "mpt")
LOGITS = {
    "cohere": "logit_scale",
    "cohere2": "logit_scale",
    "gemma2": "final_logit_softcapping",
    "granite": "logits_scaling",
    "phi": "a bias",
}

Build = Callable[..., Path]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    folder = tmp_path_factory.mktemp("bases")

    def made(name: str) -> Path:
        place = folder / name
        return place if place.exists() else architectures.build(name, place)

    return made


def test_a_base_that_fsdp2_cannot_shard(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its weights are read, which takes minutes for 70B."""
    monkeypatch.setattr(LlamaPreTrainedModel, "_no_split_modules", None)
    examine(build("llama"))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(ModelError) as caught:
        examine(build("llama"))
    assert "_no_split_modules" in caught.value.found


def examine(
    folder: Path,
    *,
    quantization: str = "none",
    targets: str | list[str] = "all-linear",
    attributes: list[str] | None = None,
) -> list[str]:
    return bases.examine(
        bases.read_config(str(folder), None),
        str(folder),
        revision=None,
        quantization=quantization,
        adapter={"targets": targets},
        attributes=attributes,
    )


def set_config(folder: Path, **values: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return folder


@pytest.fixture
def copy(build: Build, tmp_path: Path) -> Path:
    """A Llama that may be changed."""
    return Path(shutil.copytree(build("llama"), tmp_path / "copy"))


@pytest.mark.parametrize("name", NO_SDPA)
def test_attention_that_cannot_be_packed(build: Build, name: str) -> None:
    with pytest.raises(ModelError) as caught:
        examine(build(name))
    assert "scaled_dot_product_attention" in caught.value.found
    assert "spelling" not in str(caught.value) and "auth" not in str(caught.value)
    with pytest.raises(ModelError) as loading:
        load_causal(str(build("bloom")), revision=None, dtype="float32", quantization="none")
    assert "scaled_dot_product_attention" in loading.value.found


@pytest.mark.parametrize("name", LOGITS)
def test_logits_that_are_more_than_a_product(build: Build, name: str) -> None:
    with pytest.raises(ModelError) as caught:
        examine(build(name))
    assert LOGITS[name] in caught.value.found


def test_an_encoder(build: Build, copy: Path) -> None:
    set_config(copy, model_type="bert", architectures=["BertForSequenceClassification"])
    for attributes in (None, ["reward"]):
        with pytest.raises(ModelError) as caught:
            examine(copy, attributes=attributes)
        assert "encoder" in caught.value.found


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "8 bits"),
        ({"model_type": "brand_new", "architectures": ["BrandNew"]}, "model_type"),
    ],
)
def test_other_quantizers_and_architectures(copy: Path, change: dict[str, Any], expected: str) -> None:
    with pytest.raises(ModelError) as caught:
        examine(set_config(copy, **change))
    assert expected in caught.value.found


def test_a_base_stored_in_4_bits_is_named_by_its_config_key(copy: Path) -> None:
    quantized = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    set_config(copy, quantization_config=quantized)
    with pytest.raises(ModelError) as caught:
        examine(copy)
    assert caught.value.fix == "model.quantization=nf4"
    assert examine(copy, quantization="nf4") == []


@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_CLS"])
def test_an_adapter_is_not_a_base(build: Build, tmp_path: Path, task: str) -> None:
    auto: Any = AutoModelForCausalLM if task == "CAUSAL_LM" else AutoModelForSequenceClassification
    model = auto.from_pretrained(build("llama"))
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type=task)).save_pretrained(
        tmp_path
    )
    with pytest.raises(ModelError) as caught:
        load_causal(str(tmp_path), revision=None, dtype="float32", quantization="none")
    assert str(build("llama")) in caught.value.found
    assert "merge" in caught.value.fix
    (tmp_path / "policy.json").write_text(json.dumps({"base": "the-base"}))
    with pytest.raises(ModelError) as caught:
        bases.read_config(str(tmp_path), None)
    fix = caught.value.fix or ""
    assert f"start={tmp_path}" in fix and "model.base=the-base" in fix


def classifier_of(base: Path, folder: Path, labels: list[str]) -> Path:
    """The base under a random head."""
    config = AutoConfig.from_pretrained(base, id2label=dict(enumerate(labels)))
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(base, config=config)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    architectures.write_tokenizer(folder)
    return folder


def head_of(folder: Path, attributes: list[str]) -> torch.Tensor:
    model = load_classifier(
        str(folder), attributes=attributes, revision=None, dtype="float32", quantization="none", pad_id=3
    )
    return model.score.weight  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("labels", "attributes", "kept"),
    [
        (["LABEL_0"], ["reward"], True),
        (["truth", "length"], ["truth", "length"], True),
        (["truth", "length"], ["length", "truth"], False),
        (["LABEL_0"], ["a", "b", "c", "d", "e"], False),
        (["rejected", "chosen"], ["reward"], False),
    ],
)
def test_a_classifiers_head_is_kept_where_it_fits(
    build: Build, tmp_path: Path, labels: list[str], attributes: list[str], kept: bool
) -> None:
    folder = classifier_of(build("llama"), tmp_path / "classifier", labels)
    weight = load_file(folder / "model.safetensors")["score.weight"]
    head = head_of(folder, attributes)
    assert head.shape == (len(attributes), 32)
    assert torch.equal(head, weight) if kept else not head.any()
    (note,) = examine(folder, attributes=attributes)
    assert ("dropped" in note) != kept and all(label in note for label in labels)
    with pytest.raises(ModelError) as caught:  # it has no output embedding
        examine(folder)
    assert "lm_head" in caught.value.found


def test_a_classifier_without_labels_in_its_config(build: Build, tmp_path: Path) -> None:
    folder = classifier_of(build("llama"), tmp_path / "classifier", ["reward"])
    config = json.loads((folder / "config.json").read_text())
    for key in ("id2label", "label2id", "num_labels"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config))
    assert head_of(folder, ["reward"]).any()


def as_torch_file(folder: Path) -> Path:
    """Store a model as older versions of transformers did."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize("architecture", ["LlamaForSequenceClassification", "RewardModel"])
@pytest.mark.parametrize("in_torch_file", [False, True])
def test_a_trained_head_is_found_by_its_weights(
    build: Build, tmp_path: Path, architecture: str, *, in_torch_file: bool
) -> None:
    folder = classifier_of(build("llama"), tmp_path / "classifier", ["reward"])
    set_config(folder, architectures=[architecture])
    weight = load_file(folder / "model.safetensors")["score.weight"]
    if in_torch_file:
        as_torch_file(folder)
    assert torch.equal(head_of(folder, ["reward"]), weight)
    assert examine(folder, attributes=["reward"])
    with pytest.raises(ModelError) as caught:
        examine(folder)
    assert "lm_head" in caught.value.found


def test_a_folder_without_weights_is_found_before_loading(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError) as caught:
        examine(copy)
    assert "model.safetensors" in caught.value.found


def test_a_missing_shard_is_found_before_loading(copy: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(copy)
    (copy / "model.safetensors").unlink()
    model.save_pretrained(copy, max_shard_size="20KB")
    shards = sorted(copy.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert examine(copy) == []
    shards[-1].unlink()
    with pytest.raises(ModelError) as caught:
        examine(copy)
    assert shards[-1].name in caught.value.found


def test_a_check_downloads_no_weights_of_a_language_model(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = []

    def cached_file(base: str, name: str, *, local_files_only: bool, **_: Any) -> None:
        if not local_files_only:
            fetched.append(name)

    monkeypatch.setattr(stored, "cached_file", cached_file)
    config = AutoConfig.from_pretrained(copy)
    bases.examine(config, "org/name", revision=None, quantization="none", adapter=None, attributes=["reward"])
    assert not fetched
    stored.stored_head(config, "org/name", None)
    assert "model.safetensors" in fetched


def test_weights_that_contain_code_are_refused(copy: Path) -> None:
    as_torch_file(copy)
    torch.save({"score.weight": Path("a")}, copy / "pytorch_model.bin")  # a class that torch does not trust
    for attempt in (lambda: examine(copy, attributes=["reward"]), lambda: head_of(copy, ["reward"])):
        with pytest.raises(ModelError):
            attempt()


def test_weights_that_are_not_used_are_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["value_head.weight"] = torch.ones(1, 32)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    head_of(copy, ["reward"])
    line = capsys.readouterr().out
    assert "1 weights" in line and "value_head.weight" in line


@pytest.mark.parametrize(
    ("config", "mergeable"),
    [
        (IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM"), True),
        (LoraConfig(target_modules=["k_proj"], task_type="CAUSAL_LM", use_dora=True), True),
        (PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"), False),
    ],
    ids=["ia3", "dora", "prompt tuning"],
)
def test_the_fix_for_an_adapter_works(build: Build, tmp_path: Path, config: Any, *, mergeable: bool) -> None:
    """The command of the message writes a model with the adapter's logits, also without its tokenizer."""
    base, adapter = build("llama"), tmp_path / "adapter"
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0, 0.3)
    model.save_pretrained(adapter)
    with pytest.raises(ModelError) as caught:
        bases.read_config(str(adapter), None)
    assert ("merge" in caught.value.fix) == mergeable or "cannot be merged" in caught.value.fix
    if mergeable:
        code = (
            caught.value.fix.split('python -c "')[1].rstrip('"').replace("MERGED", str(tmp_path / "merged"))
        )
        exec(code, {})
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
        ids = torch.tensor([[5, 6, 7]])
        with torch.no_grad():
            assert torch.allclose(merged(ids).logits, model.eval()(ids).logits, atol=1e-4)
        assert (tmp_path / "merged/tokenizer_config.json").exists()


def test_missing_weights_are_not_left_random(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    gone = "model.layers.1.mlp.up_proj.weight"
    weights.pop(gone)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError) as caught:
        load_causal(str(copy), revision=None, dtype="float32", quantization="none")
    assert gone in caught.value.found


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "qwen2_moe", "deepseek_v3"])
def test_experts_get_no_adapter(build: Build, name: str) -> None:
    folder = build(name)
    (note,) = examine(folder)
    assert "experts" in note and "o_proj" in note and "gate" not in note
    for inside in ("gate", "down_proj", "experts"):
        with pytest.raises(ModelError) as caught:
            examine(folder, targets=["o_proj", inside])
        assert caught.value.fix == "adapter.targets=all-linear"
    assert examine(folder, targets=["o_proj"]) == []


def test_the_note_on_a_dropped_head_says_how_to_keep_it() -> None:
    five, single = ["helpfulness", "wit"], stored.StoredHead(("LABEL_0",), 1)
    assert "attributes=[helpfulness]" in single.note(five)
    assert "attributes=" not in single.note(["helpfulness"])  # it is kept
    classes = stored.StoredHead(("rejected", "chosen"), 2)
    assert "attributes=[" not in classes.note(five)  # the first would be the reward
