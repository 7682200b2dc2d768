from __future__ import annotations

from pathlib import Path
from typing import Any

import architectures
import pytest
import torch
from peft import LoraConfig
from transformers import AutoTokenizer

from rlhf.adapters import merging
from rlhf.adapters.merging import merge, require_format, verify
from rlhf.adapters.storage import Adapter
from rlhf.core.errors import DivergenceError, ModelError
from rlhf.core.records import Message
from rlhf.models.chat import Chat
from rlhf.models.loading import load_causal

TALK = (Message("user", "Hello"), Message("assistant", "Hi"))


@pytest.mark.parametrize("dtype", ["nf4", "int4", "fp8", "4"])
def test_a_merge_into_few_bits_is_refused(dtype: str) -> None:
    with pytest.raises(ModelError, match="4-bit") as caught:
        require_format(dtype)
    assert caught.value.fix.startswith("--dtype bfloat16")


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ModelError, match="--dtype bfloat .*'bfloat16'"):
        require_format("bfloat")
    require_format("bfloat16")


def test_a_difference_beyond_the_tolerance_is_an_error() -> None:
    assert str(verify("scores", [0.01, 0.2, 0.0], 0.2)) == "0.2 over 3 conversations (allowed: 0.2)"
    with pytest.raises(DivergenceError, match=r"scores .*0\.21 ") as caught:
        verify("scores", [0.21, 0.0], 0.2)
    assert caught.value.exit_code == 1
    with pytest.raises(DivergenceError):
        verify("scores", [float("nan")], 0.2)


def test_the_date_is_pinned_in_the_saved_template(tiny_base: Path, tmp_path: Path) -> None:
    """Other programs pass no date, and a template such as Llama-3.1's would write the current one."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = (
        "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
        "{{ date_string }}{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    )
    chat = Chat(tokenizer, template_date="1 Feb 2003")
    before = tokenizer.chat_template
    chat.save_tokenizer(tmp_path)
    assert tokenizer.chat_template == before
    messages = [{"role": message.role, "content": message.content} for message in TALK]
    rendered = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        messages, tokenize=True, return_dict=True
    )
    assert rendered["input_ids"] == chat.conversation_ids(TALK)
    assert Chat.load(tmp_path, template_date="1 Feb 2003").conversation_ids(TALK) == chat.conversation_ids(
        TALK
    )


def test_transposed_layers_do_not_depend_on_the_adapters_config(tmp_path: Path) -> None:
    """GPT-2 stores its matrices transposed; an extrapolated adapter's config does not say so."""
    folder = architectures.build("gpt2", tmp_path)
    settings = {"revision": None, "dtype": "float32", "quantization": "none"}
    base, other = (load_causal(str(folder), **settings) for _ in range(2))  # type: ignore[arg-type]
    name = "transformer.h.0.attn.c_attn"
    A, B = torch.randn(2, 32), torch.randn(96, 2)
    prefix = f"base_model.model.{name}"
    weights = {f"{prefix}.lora_A.weight": A, f"{prefix}.lora_B.weight": B}
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["c_attn"])
    assert not config.fan_in_fan_out
    merged = merge(base, Adapter("policy", config, weights, {}), "float32")
    difference = merged.get_submodule(name).weight - other.get_submodule(name).weight
    assert torch.allclose(difference, (B @ A).T, atol=1e-5)


def test_a_4_bit_base_is_dequantized_in_the_machines_memory(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 16 bits it need not fit on the GPU that trained it."""
    taken: list[bool] = []

    def load(*words: Any, on_host: bool, **settings: Any) -> Any:
        taken.append(on_host)
        return load_causal(*words, on_host=on_host, **settings)

    monkeypatch.setattr(merging, "load_causal", load)
    card = {"base": str(tiny_base), "revision": None, "dtype": "float32", "quantization": "nf4"}
    model = merging.load_as_trained(card, writes=True)
    assert taken == [True]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
