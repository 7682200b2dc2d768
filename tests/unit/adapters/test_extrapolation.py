"""ExPO on adapters against ExPO on full weights, through the folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import Result

from reward.scorer import Scorer
from rlhf.adapters.extrapolation import extrapolate_folders
from rlhf.core.errors import ModelError
from rlhf.core.records import Message

Rlhf = Callable[..., Result]
Make = Callable[..., Path]
FACTOR = 1.52
IDS = torch.tensor([[5, 70, 300, 12, 9, 1000, 77, 2]])


@pytest.fixture
def make(tiny_base: Path, tiny_reward: Path, tmp_path: Path) -> Make:
    """Makes the `final/` folder of a random reward model, or of a policy, with any adapter settings."""

    def build(name: str, seed: int, *, kind: str = "reward", attributes: int = 2, **lora: Any) -> Path:
        folder = tmp_path / name
        shutil.copytree(tiny_reward, folder)
        card = json.loads((folder / "reward.json").read_text())
        settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **lora}
        if kind == "reward":
            base = AutoModelForSequenceClassification.from_pretrained(tiny_base, num_labels=attributes)
            config = LoraConfig(**settings, task_type="SEQ_CLS", modules_to_save=["score"])
            card["attributes"] = [f"attribute {n}" for n in range(attributes)]
            (folder / "reward.json").write_text(json.dumps(card))
        else:
            base = AutoModelForCausalLM.from_pretrained(tiny_base)
            config = LoraConfig(**settings, task_type="CAUSAL_LM")
            (folder / "reward.json").unlink()
            (folder / "policy.json").write_text(json.dumps({**card, "reward": "runs/r/final"}))
        model = get_peft_model(base, config)
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.copy_(torch.empty(parameter.shape).normal_(0, 0.05, generator=generator))
        model.save_pretrained(str(folder))
        return folder

    return build


def auto(folder: Path) -> Any:
    is_reward = (folder / "reward.json").exists()
    return AutoModelForSequenceClassification if is_reward else AutoModelForCausalLM


def merged(tiny_base: Path, folder: Path) -> Any:
    """The model with merged weights, by PEFT's merge."""
    base = auto(folder).from_pretrained(tiny_base, **labels(folder))
    return PeftModel.from_pretrained(base, folder).merge_and_unload().eval()


def labels(folder: Path) -> dict[str, int]:
    card = folder / "reward.json"
    return {"num_labels": len(json.loads(card.read_text())["attributes"])} if card.exists() else {}


@torch.no_grad()
def logits(model: Any) -> Tensor:
    logits: Tensor = model(input_ids=IDS).logits
    return logits


def with_transformers(tiny_base: Path, folder: Path) -> Tensor:
    """What anybody's transformers and PEFT make of a folder."""
    base = auto(folder).from_pretrained(tiny_base, **labels(folder))
    return logits(PeftModel.from_pretrained(base, folder).eval())


@torch.no_grad()
def dense_extrapolation(tiny_base: Path, weak: Path, strong: Path, factor: float) -> Tensor:
    """The official form of ExPO: on every weight of two models."""
    result, strong_model = merged(tiny_base, weak), merged(tiny_base, strong)
    theirs = dict(strong_model.named_parameters())
    for name, parameter in result.named_parameters():
        parameter += factor * (theirs[name] - parameter)
    return logits(result)


PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "alike": ({}, {}),
    "ranks, alphas, rsLoRA": ({"r": 2, "lora_alpha": 3}, {"r": 6, "lora_alpha": 5, "use_rslora": True}),
    "layers that one adapter lacks": (
        {"target_modules": ["q_proj", "up_proj"]},
        {"target_modules": ["q_proj", "o_proj"]},
    ),
    "a part of the layers": ({"layers_to_transform": [0]}, {"layers_to_transform": [0, 1]}),
    "a pattern": ({"target_modules": r".*\.1\..*q_proj"}, {}),
}


@pytest.mark.parametrize("kind", ["reward", "policy"])
@pytest.mark.parametrize("pair", PAIRS)
def test_as_on_whole_weights(tiny_base: Path, make: Make, tmp_path: Path, kind: str, pair: str) -> None:
    weak, strong = (
        make(name, seed, kind=kind, **settings)
        for name, seed, settings in zip(("weak", "strong"), (1, 2), PAIRS[pair], strict=True)
    )
    made = extrapolate_folders(weak, strong, FACTOR, tmp_path / "out")
    assert made.error == 0.0
    expected = dense_extrapolation(tiny_base, weak, strong, FACTOR)
    logits = with_transformers(tiny_base, tmp_path / "out")
    # Hidden states of a few units, by float32 sums in another order: 1.2e-5 apart on a processor with AMX.
    assert torch.allclose(logits, expected, atol=3e-5, rtol=1e-5)
    for other in (weak, strong):
        assert (with_transformers(tiny_base, other) - expected).abs().max() > 1e-2


def test_factor_0_is_the_weak_model_and_1_the_strong_one(tiny_base: Path, make: Make, tmp_path: Path) -> None:
    weak, strong = make("weak", 1, r=2), make("strong", 2)
    for factor, original in ((0.0, weak), (1.0, strong)):
        extrapolate_folders(weak, strong, factor, tmp_path / f"{factor}")
        same = with_transformers(tiny_base, tmp_path / f"{factor}") - with_transformers(tiny_base, original)
        assert same.abs().max() < 1e-5
    assert json.loads((tmp_path / "0.0" / "adapter_config.json").read_text())["r"] == 2


def test_the_error_of_a_truncation_is_that_of_the_whole_matrices(
    tiny_base: Path, make: Make, tmp_path: Path
) -> None:
    weak, strong = make("weak", 1), make("strong", 2)
    exact = extrapolate_folders(weak, strong, FACTOR, tmp_path / "exact")
    cut = extrapolate_folders(weak, strong, FACTOR, tmp_path / "cut", rank=3)
    assert json.loads((tmp_path / "exact" / "adapter_config.json").read_text())["r"] == 8
    assert json.loads((tmp_path / "cut" / "adapter_config.json").read_text())["r"] == 3
    full, truncated, origin = (
        model.state_dict()
        for model in (
            merged(tiny_base, tmp_path / "exact"),
            merged(tiny_base, tmp_path / "cut"),
            auto(weak).from_pretrained(tiny_base, **labels(weak)),
        )
    )
    layers = [name for name in full if "q_proj" in name or "down_proj" in name]
    squared_error = sum(float((full[name] - truncated[name]).square().sum()) for name in layers)
    total = sum(float((full[name] - origin[name]).square().sum()) for name in layers)
    assert exact.error == 0.0
    assert cut.error == pytest.approx((squared_error / total) ** 0.5, rel=1e-3)
    assert cut.error > 0.05
    card = json.loads((tmp_path / "cut" / "reward.json").read_text())
    assert card["extrapolated"]["truncation_error"] == cut.error


def test_the_command_leaves_a_reward_model_like_any_other(
    tiny_base: Path, make: Make, tmp_path: Path, rlhf_command: Rlhf
) -> None:
    weak, strong, out = make("weak", 1), make("strong", 2), tmp_path / "out"
    result = rlhf_command("extrapolate", weak, strong, "--factor", "1.52", "--rank", "3", "--output", out)
    assert result.exit_code == 0, result.output
    assert "Truncated to rank 3: relative error 0." in result.stdout and f"Model: {out}" in result.stdout
    assert {file.name for file in out.iterdir()} == {file.name for file in strong.iterdir()}
    assert "weak + 1.52 x (strong - weak)" in (out / "README.md").read_text()
    conversation = (Message("user", "Hi."), Message("assistant", "Hello."))
    scorer = Scorer.load(out)
    (score,) = scorer.score([conversation])
    assert list(score.attributes) == ["attribute 0", "attribute 1"]
    model = PeftModel.from_pretrained(auto(out).from_pretrained(tiny_base, num_labels=2), out).eval()
    model.config.pad_token_id = AutoTokenizer.from_pretrained(out).pad_token_id
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor([scorer.chat.conversation_ids(conversation)])).logits[0]
    assert list(score.attributes.values()) == pytest.approx(theirs.tolist(), abs=1e-4)


@contextmanager
def card_of(folder: Path, name: str = "reward.json") -> Iterator[dict[str, Any]]:
    card = json.loads((folder / name).read_text())
    yield card
    (folder / name).write_text(json.dumps(card))


def test_differences_between_models_are_listed_in_one_message(
    make: Make, tmp_path: Path, rlhf_command: Rlhf
) -> None:
    weak, strong = make("weak", 1), make("strong", 2)
    with card_of(weak) as card:
        card.update(fingerprint="0" * 16, base="another", template_hash="f" * 64, attributes=["b", "a"])
    result = rlhf_command("extrapolate", weak, strong, "--factor", "1.5", "--output", tmp_path / "out")
    assert result.exit_code == 2
    message = " ".join(result.stderr.split())
    assert "base: 'another' (fingerprint 0000000000000000)" in message
    assert "chat template: ffffffffffff…" in message
    assert "attributes: b, a " in message and "attribute 0, attribute 1" in message
    assert "kind: " not in message
    assert not (tmp_path / "out").exists()


def test_a_policy_and_a_reward_model(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="kind: reward model .*policy"):
        extrapolate_folders(make("weak", 1), make("strong", 2, kind="policy"), 1.5, tmp_path / "out")


def test_an_adapter_that_is_not_a_plain_lora(make: Make, tmp_path: Path) -> None:
    weak = make("weak", 1)
    for strong in (make("dora", 2, use_dora=True), make("ranks", 2, rank_pattern={"q_proj": 2})):
        with pytest.raises(ModelError, match="use_dora|rank_pattern") as caught:
            extrapolate_folders(weak, strong, 1.5, tmp_path / "out")
        assert caught.value.exit_code == 2


def test_other_mistakes(make: Make, tmp_path: Path, rlhf_command: Rlhf) -> None:
    weak, strong = make("weak", 1), make("strong", 2)

    def refused(*words: object) -> str:
        result = rlhf_command("extrapolate", *words)
        assert result.exit_code == 2 and "Traceback" not in result.output
        return " ".join(result.stderr.split())

    assert "is neither a reward model nor a policy" in refused(
        tmp_path, strong, "--factor=1.5", f"--output={tmp_path}/o"
    )
    assert "--factor is -1" in refused(weak, strong, "--factor=-1", f"--output={tmp_path}/o")
    assert "not empty" in refused(weak, strong, "--factor=1.5", f"--output={weak}")
    headless = {
        name: w for name, w in load_file(strong / "adapter_model.safetensors").items() if "score" not in name
    }
    save_file(headless, strong / "adapter_model.safetensors")
    assert "contains 0 reward heads" in refused(weak, strong, "--factor=1.5", f"--output={tmp_path}/o")
    assert not (tmp_path / "o").exists()
