from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from rlhf.adapters.merging import require_format, verify
from rlhf.core.errors import DivergenceError, ModelError
from rlhf.core.records import Message
from rlhf.models.chat import Chat

TALK = (Message("user", "Hello"), Message("assistant", "Hi"))


@pytest.mark.parametrize("dtype", ["nf4", "int4", "fp8", "4"])
def test_a_merge_into_few_bits_is_refused(dtype: str) -> None:
    with pytest.raises(ModelError, match="loses the adapter") as caught:
        require_format(dtype)
    assert caught.value.fix.startswith("--dtype bfloat16")


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ModelError, match=r"--dtype bfloat is not known\. Did you mean 'bfloat16'\?"):
        require_format("bfloat")
    require_format("bfloat16")


def test_a_difference_beyond_the_tolerance_is_an_error() -> None:
    assert str(verify("scores", [0.01, 0.2, 0.0], 0.2)) == "0.2 over 3 conversations (allowed: 0.2)"
    with pytest.raises(
        DivergenceError, match=r"scores differ by up to 0\.21 .*Nothing was written"
    ) as caught:
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
