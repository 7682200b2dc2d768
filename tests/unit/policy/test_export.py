"""A policy as plain weights: the same log-probabilities, by transformers alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from policy.export import export_policy, generation_config_of, text_logprobs
from rlhf.adapters.storage import Adapter
from rlhf.core.errors import DivergenceError, ModelError
from rlhf.core.records import Message
from rlhf.models.chat import Chat
from rlhf.models.loading import fingerprint, load_causal, lora_config, with_adapter

TALKS = [
    (Message("user", "Name a colour."), Message("assistant", answer))
    for answer in ("Blue.", "I do not know.")
]


@pytest.fixture(scope="module")
def final(tiny_base: Path, tiny_chat: Chat, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `final/` folder of a policy on the tiny base, with a random adapter."""
    folder = tmp_path_factory.mktemp("policy") / "final"
    base = load_causal(str(tiny_base), revision=None, dtype="float32", quantization="none")
    model = with_adapter(base, lora_config(rank=4, alpha=8, dropout=0.0, targets="all-linear"))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.2, generator=generator))
    model.save_pretrained(str(folder))
    tiny_chat.tokenizer.save_pretrained(folder)
    card = {
        "base": str(tiny_base), "revision": None, "fingerprint": fingerprint(base), "dtype": "float32",
        "quantization": "none", "template_date": "26 Jul 2024", "template_hash": tiny_chat.template_hash,
    }  # fmt: skip
    (folder / "policy.json").write_text(json.dumps(card))
    return folder


def test_every_token_keeps_its_probability(
    final: Path, tiny_base: Path, tiny_chat: Chat, tmp_path: Path
) -> None:
    result = export_policy(final, tmp_path / "out", TALKS, dtype="float32")
    assert result.largest < 1e-4 and result.tolerance == 0.001
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = tiny_chat.conversation_ids(TALKS[1])
    plain = text_logprobs(base.eval(), ids)
    # By hand: log p of token t is read where token t - 1 stands.
    with torch.no_grad():
        by_hand = base(torch.tensor([ids])).logits[0].log_softmax(dim=1)[torch.arange(len(ids) - 1), ids[1:]]
    assert torch.allclose(plain, by_hand, atol=1e-5)
    adapted = text_logprobs(PeftModel.from_pretrained(base, final).eval(), ids)
    after = text_logprobs(merged, ids)
    assert torch.allclose(after, adapted, atol=1e-4)
    assert (after - plain).abs().mean() > 0.1


def test_it_comes_with_tokenizer_and_generation_config(final: Path, tiny_chat: Chat, tmp_path: Path) -> None:
    export_policy(final, tmp_path / "out", TALKS)
    values = GenerationConfig.from_pretrained(tmp_path / "out")
    assert values.eos_token_id == list(tiny_chat.stop_ids) and values.pad_token_id == tiny_chat.pad_id
    assert Chat.load(tmp_path / "out").template_hash == tiny_chat.template_hash
    assert AutoTokenizer.from_pretrained(tmp_path / "out").pad_token_id == tiny_chat.pad_id
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "float32", "the format the policy was trained in"
    assert config["architectures"] == ["LlamaForCausalLM"]
    (block,) = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)
    result: dict[str, Any] = {}
    exec(block.replace("max_new_tokens=64", "max_new_tokens=2"), result)
    assert len(result["answer"]) in (1, 2)


def test_conversations_beyond_the_context_are_not_compared(final: Path, tmp_path: Path) -> None:
    long = (Message("user", "Name a colour. " * 300), Message("assistant", "Blue."))
    done = export_policy(final, tmp_path / "plain", [*TALKS, long], dtype="float32")
    assert done == export_policy(final, tmp_path / "again", TALKS, dtype="float32")
    with pytest.raises(ModelError) as caught:
        export_policy(final, tmp_path / "none", [long], dtype="float32")
    assert "512" in caught.value.found and not (tmp_path / "none").exists()


def test_an_adapter_that_was_lost_leaves_nothing(
    final: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Adapter, "update", lambda self: {})
    with pytest.raises(DivergenceError, match="log-probabilities"):
        export_policy(final, tmp_path / "out", TALKS)
    assert list(tmp_path.iterdir()) == []


def test_not_a_policy(tiny_reward: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="it is a reward model"):
        export_policy(tiny_reward, tmp_path / "out", TALKS)


def test_the_command_knows_a_policy(final: Path, rlhf_command: Any, tmp_path: Path) -> None:
    result = rlhf_command("export", final, "--output", tmp_path / "out", "--form", "classifier")
    assert result.exit_code == 2 and f"{final} " in result.stderr
    result = rlhf_command("export", final, "--output", tmp_path / "out", "--dtype", "float32")
    assert result.exit_code == 0, result.output
    assert "a conversation's log-probabilities" in result.stdout
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(("do_sample", "kept"), [(True, 0.6), (None, None)])
def test_how_a_base_draws_can_be_saved_whether_it_draws_or_not(
    tiny_chat: Chat, tmp_path: Path, do_sample: bool | None, kept: float | None
) -> None:
    settings = {"temperature": 0.6, "eos_token_id": 5} | (
        {} if do_sample is None else {"do_sample": do_sample}
    )
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    generation_config_of(str(tmp_path), None, tiny_chat).save_pretrained(tmp_path / "saved")
    saved = GenerationConfig.from_pretrained(tmp_path / "saved")
    assert saved.temperature == kept
    assert saved.eos_token_id == [5, *tiny_chat.stop_ids]


@pytest.mark.parametrize(
    "settings",
    [
        {"length_penalty": 2.0},
        {"num_beams": 1, "early_stopping": True},
        {"do_sample": False, "temperature": 0.6, "top_k": 5},
    ],
)
def test_settings_of_a_base_that_transformers_refuses_to_save(
    tiny_chat: Chat, tmp_path: Path, settings: dict[str, Any]
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 5, **settings}))
    with pytest.raises(ValueError, match="Fix these issues"):
        GenerationConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "theirs")
    generation_config_of(str(tmp_path), None, tiny_chat).save_pretrained(tmp_path / "saved")
    assert GenerationConfig.from_pretrained(tmp_path / "saved").eos_token_id == [5, *tiny_chat.stop_ids]
