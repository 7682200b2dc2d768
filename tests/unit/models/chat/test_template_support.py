from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from rlhf.core.errors import RefusalError
from rlhf.core.records import Message
from rlhf.models.chat import Chat

PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m.get('reasoning_content') or '' }}{{ m['content'] }}"
    "{% for c in m.get('tool_calls') or [] %}"
    "{{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %}"
    "<|im_end|>\n{% endfor %}"
)
SILENT = (
    "{% for m in messages %}{% if m['role'] in ('user', 'assistant') %}"
    "{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
)
USER = Message("user", "q")


def call(name: str) -> Message:
    calls = [{"type": "function", "function": {"name": name, "arguments": {"x": 1}}}]
    return Message("assistant", "", json.dumps({"tool_calls": calls}))


ChatOf = Callable[[str], Chat]


@pytest.fixture
def chat_of(tiny_base: Path) -> ChatOf:
    def make(template: str) -> Chat:
        tokenizer = AutoTokenizer.from_pretrained(tiny_base)
        tokenizer.chat_template = template
        return Chat(tokenizer)

    return make


def test_what_the_template_renders_reaches_the_ids(chat_of: ChatOf) -> None:
    chat = chat_of(TOOLS)
    assert chat.conversation_ids((USER, call("right"))) != chat.conversation_ids((USER, call("wrong")))
    with_tools = Message("user", "q", json.dumps({"tools": [{"function": {"name": "f"}}]}))
    assert len(chat.prompt_ids((with_tools,))) > len(chat.prompt_ids((USER,)))
    # One call with conversations with and without tools.
    assert list(chat.prompts_ids([(USER,), (with_tools,), (USER,)])) == [
        chat.prompt_ids((message,)) for message in (USER, with_tools, USER)
    ]


@pytest.mark.parametrize(
    ("template", "message", "name"),
    [
        (PLAIN, call("f"), "tool_calls"),
        (PLAIN, Message("assistant", "a", '{"reasoning_content": "b"}'), "reasoning_content"),
        (PLAIN, Message("user", "q", '{"name": "Ann"}'), "name"),
        (PLAIN, Message("user", "q", '{"tools": [{"function": {}}]}'), "tools"),
        (SILENT, Message("system", "s"), "system"),
        (SILENT, Message("developer", "s"), "developer"),
        (SILENT, Message("tool", "s"), "tool"),
    ],
)
def test_what_the_template_drops_is_refused_by_name(
    chat_of: ChatOf, template: str, message: Message, name: str
) -> None:
    with pytest.raises(RefusalError) as caught:
        chat_of(template).prompt_ids((message, USER))
    assert repr(name) in caught.value.reason


def test_a_developer_goes_to_a_template_that_renders_any_role(chat_of: ChatOf) -> None:
    assert chat_of(PLAIN).prompt_ids((Message("developer", "s"), USER))
