"""Exported reward models: transformers reads the same scores as those of the adapter."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import reward.export
from reward.export import export_reward, score_differences
from reward.load_scorer import load_scorer
from reward.scorer import Score, Scorer
from rlhf.adapters.storage import Adapter
from rlhf.core.errors import DivergenceError, ModelError
from rlhf.core.records import HELPSTEER_ATTRIBUTES, Message
from rlhf.runs.files import HALF_WRITTEN

TALKS = [
    (Message("user", prompt), Message("assistant", answer))
    for prompt in ("Name a colour.", "What is the capital of France, and why?")
    for answer in ("Blue.", "I do not know.", "Paris " * 20)
]
Export = Callable[..., Path]


def values(scores: Any) -> torch.Tensor:
    return torch.tensor([list(score.attributes.values()) for score in scores])


def messages(talk: Any) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in talk]


@pytest.fixture(scope="module")
def before(tiny_reward: Path) -> torch.Tensor:
    return values(Scorer.load(tiny_reward).score(TALKS))


@pytest.fixture(scope="module")
def exported(tiny_reward: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny reward model in float32, in every form."""
    folder = tmp_path_factory.mktemp("exported")
    forms: dict[str, Any] = {
        "classifier": {},
        "reward only": {"reward_only": True},
        "nemotron": {"form": "nemotron"},
    }
    for name, options in forms.items():
        result = export_reward(tiny_reward, folder / name, TALKS, dtype="float32", **options)
        assert result.largest < 1e-4 and result.count == len(TALKS)
    return {name: folder / name for name in forms}


def test_the_format_is_that_of_the_training_and_no_hidden_folder_is_named(
    tiny_reward: Path, before: torch.Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """tiny_reward was trained in float32, and has several outputs."""
    result = export_reward(tiny_reward, tmp_path / "out", TALKS)
    assert result.largest < 1e-4
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
    assert torch.allclose(values(load_scorer(tmp_path / "out").score(TALKS)), before, atol=1e-4)
    assert HALF_WRITTEN not in "".join(capsys.readouterr())


def test_a_classifier_scores_alone_and_in_a_padded_batch(
    exported: dict[str, Path], before: torch.Tensor
) -> None:
    """In transformers' own forward, on either padding side: its pad_token_id has to be right."""
    folder = exported["classifier"]
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert tuple(model.config.id2label[place] for place in range(5)) == HELPSTEER_ATTRIBUTES
    for side in ("left", "right"):
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side=side)
        batch = tokenizer.apply_chat_template(
            [messages(talk) for talk in TALKS], padding=True, return_dict=True, return_tensors="pt"
        )
        positions = (batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        with torch.no_grad():
            assert torch.allclose(model(**batch, position_ids=positions).logits, before, atol=1e-4), side


def test_the_reward_alone_loads_as_trl_loads_it(exported: dict[str, Path], before: torch.Tensor) -> None:
    model, result = AutoModelForSequenceClassification.from_pretrained(
        exported["reward only"], num_labels=1, output_loading_info=True
    )
    assert not result["missing_keys"] and not result["unexpected_keys"] and not result["mismatched_keys"]
    tokenizer = AutoTokenizer.from_pretrained(exported["reward only"])
    batch = tokenizer.apply_chat_template(
        [messages(talk) for talk in TALKS], padding=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        assert torch.allclose(model.eval()(**batch).logits[:, 0], before[:, 0], atol=1e-4)


def test_outputs_that_were_not_trained_are_left_out(
    tiny_reward: Path, before: torch.Tensor, tmp_path: Path
) -> None:
    final = Path(shutil.copytree(tiny_reward, tmp_path / "final"))
    card = json.loads((final / "reward.json").read_text())
    (final / "reward.json").write_text(json.dumps({**card, "untrained": ["correctness"]}))
    export_reward(final, tmp_path / "plain", TALKS, dtype="float32")
    exported = load_scorer(tmp_path / "plain", form="classifier", dtype="float32")
    names = [name for name in HELPSTEER_ATTRIBUTES if name != "correctness"]
    assert list(exported.attributes) == names
    assert torch.allclose(values(exported.score(TALKS)), before[:, [0, 2, 3, 4]], atol=1e-4)


def test_nemotrons_form_by_the_call_of_nvidias_card(exported: dict[str, Path], before: torch.Tensor) -> None:
    model = AutoModelForCausalLM.from_pretrained(exported["nemotron"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(exported["nemotron"])
    assert not model.config.tie_word_embeddings
    for talk, expected in zip(TALKS, before[:, 0].tolist(), strict=True):
        ids = tokenizer.apply_chat_template(
            messages(talk), tokenize=True, return_dict=True, return_tensors="pt"
        )
        out = model.generate(**ids, max_new_tokens=1, return_dict_in_generate=True, output_scores=True)
        assert out["scores"][0][0][0].item() == pytest.approx(expected, abs=1e-4)


def test_a_merged_weight_is_base_plus_scaled_product(
    exported: dict[str, Path], tiny_base: Path, tiny_reward: Path
) -> None:
    name = "model.layers.1.mlp.down_proj"
    adapter = load_file(tiny_reward / "adapter_model.safetensors")
    A, B = (adapter[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    base = load_file(tiny_base / "model.safetensors")[f"{name}.weight"]
    expected = base + (8 / 4) * B @ A  # alpha / rank
    for folder in exported.values():
        merged = load_file(folder / "model.safetensors")[f"{name}.weight"]
        assert torch.allclose(merged, expected, atol=1e-6)
    assert (expected - base).abs().max() > 0.01


@pytest.mark.parametrize(
    ("dtype", "form"), [("bfloat16", "classifier"), ("bfloat16", "nemotron"), ("float16", "classifier")]
)
def test_other_formats(
    tiny_reward: Path, tmp_path: Path, before: torch.Tensor, dtype: str, form: str
) -> None:
    result = export_reward(tiny_reward, tmp_path / "out", TALKS, form=form, dtype=dtype)
    assert 0 < result.largest <= result.tolerance
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {getattr(torch, dtype)}
    after = load_scorer(tmp_path / "out", form=form, dtype="float32").score(TALKS)
    scale = max(1.0, float(before[:, 0].abs().max()))
    rewards = torch.tensor([score.reward for score in after])
    assert float((rewards - before[:, 0]).abs().max()) / scale <= result.largest + 1e-6


@pytest.mark.parametrize("block", ["classifier", "reward only", "nemotron"])
def test_the_code_on_the_card_runs_and_gives_the_reward(
    exported: dict[str, Path], tiny_reward: Path, block: str
) -> None:
    text = (exported[block] / "README.md").read_text()
    result: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], result)  # what a reader would copy
    talk = tuple(Message(message["role"], message["content"]) for message in result["messages"])
    (expected,) = Scorer.load(tiny_reward).score([talk])
    assert result["reward"] == pytest.approx(expected.reward, abs=1e-4)
    assert "differ by at most" in text and "allowed: 0.001" in text


def test_an_adapter_that_was_lost_leaves_nothing(
    tiny_reward: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Adapter, "update", lambda self: {})
    with pytest.raises(DivergenceError, match="scores") as caught:
        export_reward(tiny_reward, tmp_path / "out", TALKS)
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_for_a_4_bit_base_is_merged_into_those_weights(tiny_reward: Path, tmp_path: Path) -> None:
    trained = Path(shutil.copytree(tiny_reward, tmp_path / "final"))
    card = json.loads((trained / "reward.json").read_text())
    (trained / "reward.json").write_text(json.dumps({**card, "quantization": "nf4"}))
    in_4_bits, in_32 = (values(Scorer.load(folder).score(TALKS)) for folder in (trained, tiny_reward))
    export_reward(trained, tmp_path / "out", TALKS, dtype="float32")
    after = values(load_scorer(tmp_path / "out").score(TALKS))
    assert torch.allclose(after, in_4_bits, atol=1e-2)
    assert (after - in_32).abs().max() > 0.1  # another model
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert (
        "merged into the 16-bit original, it would be another model"
        in (tmp_path / "out" / "README.md").read_text()
    )


def test_a_base_stored_in_4_bits_is_refused(tiny_base: Path, tiny_reward: Path, tmp_path: Path) -> None:
    base, final = tmp_path / "base", tmp_path / "final"
    shutil.copytree(tiny_base, base)
    shutil.copytree(tiny_reward, final)
    config = json.loads((base / "config.json").read_text())
    stored = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": stored}))
    card = json.loads((final / "reward.json").read_text())
    (final / "reward.json").write_text(json.dumps({**card, "base": str(base)}))
    with pytest.raises(ModelError, match="fp4"):
        export_reward(final, tmp_path / "out", TALKS)
    assert not (tmp_path / "out").exists()


def test_a_base_that_moved(tiny_reward: Path, tmp_path: Path) -> None:
    final = Path(shutil.copytree(tiny_reward, tmp_path / "final"))
    card = json.loads((final / "reward.json").read_text())
    (final / "reward.json").write_text(json.dumps({**card, "base": str(tmp_path / "gone")}))
    with pytest.raises(ModelError, match=str(tmp_path / "gone")):
        export_reward(final, tmp_path / "out", TALKS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "classifer"}, "--form classifer .*'classifier'"),
        ({"dtype": "nf4"}, "4-bit"),
    ],
)
def test_a_mistaken_option(tiny_reward: Path, tmp_path: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        export_reward(tiny_reward, tmp_path / "out", TALKS, **options)  # type: ignore[arg-type]


def test_not_a_reward_model(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=str(tiny_base)):
        export_reward(tiny_base, tmp_path / "out", TALKS)


def test_differences_are_shares_of_the_largest_score() -> None:
    before = [Score(4.0, {"a": 4.0, "b": 0.5}), Score(-8.0, {"a": -8.0, "b": 0.25})]
    after = [Score(4.4, {"a": 4.4, "b": 0.5}), Score(-8.0, {"a": -8.0, "b": 0.5})]
    # a: 0.4 / 8; b: 0.25 / max(1, 0.5)
    assert score_differences(before, after, ["a", "b"]) == pytest.approx([0.05, 0.25])
    # Nemotron's form names one output, `reward`.
    alone = [Score(score.reward, {"reward": score.reward}) for score in after]
    assert score_differences(before, alone, ["a"]) == pytest.approx([0.05, 0.0])


def test_models_whose_logits_are_more_than_a_product_have_no_such_form(tiny_reward: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(json.loads((tiny_reward / "reward.json").read_text())["base"])
    base.config.final_logit_softcapping = 30.0
    chat: Any = None
    with pytest.raises(ModelError, match="logits"):
        reward.export.nemotron(base, torch.zeros(1, 64), chat)
