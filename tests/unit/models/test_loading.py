from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhf.adapters.storage import RewardAdapter
from rlhf.core.errors import ModelError
from rlhf.models.forwards import enable_packed_scores
from rlhf.models.loading import (
    PeftModel,
    fingerprint,
    load_causal,
    load_classifier,
    lora_config,
    reward_head,
    with_adapter,
)
from rlhf.models.names import HEAD, POLICY, REWARD
from rlhf.models.roles import role

IDS = torch.tensor([[5, 6, 7, 8]])


def causal(base: Path, dtype: str = "float32", quantization: str = "none") -> Any:
    return load_causal(str(base), revision=None, dtype=dtype, quantization=quantization)


def policy(base: Path) -> PeftModel:
    """A causal model with an adapter that changes something."""
    torch.manual_seed(0)
    model = with_adapter(causal(base), lora_config(rank=4, alpha=8, dropout=0.0, targets="all-linear"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits  # type: ignore[no-any-return]


def trainable(model: PeftModel) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.fixture
def final(tiny_reward: Path, tmp_path: Path) -> Path:
    """A copy of a reward model that may be broken."""
    return Path(shutil.copytree(tiny_reward, tmp_path / "final"))


def test_a_fingerprint_tells_bases_apart_and_formats_not(tiny_base: Path, other_base: Path) -> None:
    expected = fingerprint(causal(tiny_base))
    assert fingerprint(causal(tiny_base, "bfloat16")) == expected
    assert fingerprint(causal(tiny_base, quantization="nf4")) == expected
    assert fingerprint(causal(other_base)) != expected


def test_a_fresh_classifier_scores_zero(tiny_base: Path) -> None:
    model = load_classifier(
        str(tiny_base), attributes=["a", "b"], revision=None, dtype="float32", quantization="none", pad_id=0
    )
    assert model.config.id2label == {0: "a", 1: "b"}
    assert logits(model).tolist() == [[0.0, 0.0]]
    enable_packed_scores(model)
    assert logits(model).tolist() == [[0.0, 0.0]]  # the usual call still works


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_what_is_trained_is_float32_whatever_the_base(tiny_base: Path, quantization: str) -> None:
    model = with_adapter(
        load_classifier(
            str(tiny_base),
            attributes=["a"],
            revision=None,
            dtype="bfloat16",
            quantization=quantization,
            pad_id=0,
        ),
        lora_config(rank=4, alpha=8, dropout=0.0, targets="all-linear", head=True),
    )
    trained = {name: p.dtype for name, p in model.named_parameters() if p.requires_grad}
    assert set(trained.values()) == {torch.float32}
    assert all("lora_" in name or HEAD in name for name in trained)
    assert reward_head(model).weight.requires_grad
    # Two layers of seven linear parts, A and B for each, and the head.
    assert len(trained) == 2 * 7 * 2 + 1


def test_roles_are_put_on_and_taken_off(tiny_base: Path, tiny_reward: Path) -> None:
    reference = logits(causal(tiny_base))
    model = policy(tiny_base)
    as_policy, trained = logits(model), trainable(model)
    assert not torch.allclose(as_policy, reference, atol=1e-2)
    wrapped, _ = RewardAdapter.read(tiny_reward).attach(model)
    assert wrapped is model and trainable(model) == trained
    assert torch.equal(logits(model), as_policy)  # the new adapter exists, the old one is active
    with role(model, None):
        assert torch.allclose(logits(model), reference, atol=1e-6)
    with role(model, REWARD):
        as_reward = logits(model)
        assert trainable(model) == trained  # so that a role can be trained beside the policy
    assert not torch.allclose(as_reward, as_policy, atol=1e-2)
    assert not torch.allclose(as_reward, reference, atol=1e-2)
    assert model.active_adapter == POLICY and trainable(model) == trained
    assert torch.equal(logits(model), as_policy)


@pytest.mark.parametrize("adapter", [None, REWARD])
def test_a_failure_in_a_role_leaves_the_policy_on(
    tiny_base: Path, tiny_reward: Path, adapter: str | None
) -> None:
    model = policy(tiny_base)
    RewardAdapter.read(tiny_reward).attach(model)
    before, trained = logits(model), trainable(model)
    with pytest.raises(ZeroDivisionError), role(model, adapter):
        _ = 1 / 0
    assert torch.equal(logits(model), before) and trainable(model) == trained


@pytest.mark.parametrize("adapter", [None, REWARD])
def test_a_switch_reads_no_parameters(
    tiny_base: Path, tiny_reward: Path, adapter: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A packed row switches roles, and walks over all parameters would take longer than the row on a GPU."""
    model = policy(tiny_base)
    RewardAdapter.read(tiny_reward).attach(model)

    def walk(*_: Any, **__: Any) -> Any:
        pytest.fail("a switch walks over the parameters")

    for walking in ("named_parameters", "parameters"):
        monkeypatch.setattr(torch.nn.Module, walking, walk)
    with role(model, adapter):
        pass


def test_without_its_adapter_a_classifier_has_its_original_head(tiny_base: Path) -> None:
    """As PEFT disables it; TRL's and PEFT's attributes of the active adapter are put back."""
    base = load_classifier(
        str(tiny_base), attributes=["a"], revision=None, dtype="float32", quantization="none", pad_id=0
    )
    model = with_adapter(base, lora_config(rank=4, alpha=8, dropout=0.0, targets="all-linear", head=True))
    torch.nn.init.ones_(reward_head(model).weight)
    before, active = logits(model), (model.active_adapter, model.base_model.active_adapter)
    with torch.no_grad(), model.disable_adapter():
        expected = model(IDS).logits
    with role(model, None):
        assert torch.equal(logits(model), expected)
    assert not torch.equal(before, expected)
    assert torch.equal(logits(model), before)
    assert (model.active_adapter, model.base_model.active_adapter) == active


def test_a_role_without_an_adapter(tiny_base: Path) -> None:
    with pytest.raises(ValueError, match="critic"), role(policy(tiny_base), "critic"):
        pass


def test_a_base_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "nowhere1").mkdir()
    with pytest.raises(ModelError) as caught:
        causal(tmp_path / "nowhere")
    assert caught.value.exit_code == 2
    assert "nowhere1" in caught.value.found


def test_a_run_folder_in_place_of_a_base(tmp_path: Path) -> None:
    (tmp_path / "run" / "final").mkdir(parents=True)
    for folder, fix in (("run", "is a model of this project, for `start` or `reward`"), ("", "holds config")):
        with pytest.raises(ModelError, match="has no config.json") as caught:
            load_causal(str(tmp_path / folder), revision=None, dtype="float32", quantization="none")
        assert fix in caught.value.fix


def test_targets_that_the_model_does_not_have(tiny_base: Path) -> None:
    config = lora_config(rank=4, alpha=8, dropout=0.0, targets=["q_proj", "v_porj"])
    with pytest.raises(ModelError, match="v_porj.* 'v_proj'") as caught:
        with_adapter(causal(tiny_base), config)
    assert caught.value.fix == "adapter.targets=all-linear"


def test_a_single_target_may_stand_without_a_list(tiny_base: Path) -> None:
    model = with_adapter(causal(tiny_base), lora_config(rank=4, alpha=8, dropout=0.0, targets="q_proj"))
    assert len(trainable(model)) == 2 * 2  # two layers, A and B
    assert all(".q_proj." in name for name in trainable(model))


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors", "reward.json"])
def test_a_folder_that_is_no_reward_model(final: Path, missing: str) -> None:
    (final / missing).unlink()
    with pytest.raises(ModelError) as caught:
        RewardAdapter.read(final)
    # Without its card it may be an adapter of another project.
    assert ("LoRA adapter" if missing == "reward.json" else missing) in caught.value.found


@pytest.mark.parametrize("name", ["lm_head.weight", "model.embed_tokens.weight", "model.norm.bias"])
def test_an_adapter_that_replaces_weights_of_the_base(final: Path, name: str) -> None:
    """It would change every other role on the base."""
    file = final / "adapter_model.safetensors"
    save_file({**load_file(file), f"base_model.model.{name}": torch.ones(3, 4)}, file)
    with pytest.raises(ModelError) as caught:
        RewardAdapter.read(final)
    assert name in caught.value.found
    assert caught.value.exit_code == 2


def test_the_run_folder_in_place_of_its_final(final: Path) -> None:
    with pytest.raises(ModelError) as caught:
        RewardAdapter.read(final.parent)
    assert caught.value.fix == f"use {final}"


def test_a_reward_model_without_its_head(final: Path) -> None:
    file = final / "adapter_model.safetensors"
    save_file({name: w for name, w in load_file(file).items() if HEAD not in name}, file)
    with pytest.raises(ModelError, match="reward heads") as caught:
        RewardAdapter.read(final)
    assert "score.weight" in caught.value.allowed
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("name", "left"), [("adapter_model.safetensors", 1000), ("reward.json", 20)])
def test_a_corrupt_reward_model(final: Path, name: str, left: int) -> None:
    file = final / name
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(ModelError, match=str(final)) as caught:
        RewardAdapter.read(final)
    assert caught.value.exit_code == 2


def test_head_and_card_of_two_runs(final: Path) -> None:
    card = json.loads((final / "reward.json").read_text())
    (final / "reward.json").write_text(json.dumps({**card, "attributes": ["helpfulness"]}))
    with pytest.raises(ModelError, match=r"\b5 .*reward\.json .*\b1 "):
        RewardAdapter.read(final)


def test_a_reward_model_of_another_base(tiny_base: Path, other_base: Path, tiny_reward: Path) -> None:
    with pytest.raises(ModelError) as caught:
        RewardAdapter.read(tiny_reward).attach(causal(other_base))
    assert f"'{tiny_base}'" in caught.value.found and f"'{other_base}'" in caught.value.found
    assert f"model.base={tiny_base}" in caught.value.fix
