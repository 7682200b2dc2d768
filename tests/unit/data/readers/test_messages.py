from __future__ import annotations

from typing import Any

import pytest

from rlhf.config.schema import DataSource
from rlhf.core.errors import DataError
from rlhf.core.records import Message, tools_of
from rlhf.data import rules
from rlhf.data.readers.messages import read_answers, read_prompt, read_responses
from rlhf.data.sources.rows import Row

CALL = {"type": "function", "function": {"name": "look", "arguments": '{"x": 1}'}}
TOOL = {"type": "function", "function": {"name": "look"}}


def prompt_of(value: Any, **columns: Any) -> tuple[Message, ...]:
    return read_prompt(Row("f:1", {"prompt": value, **columns}), "prompt")


def test_text_parts_are_text_and_media_are_dropped() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert prompt_of([{"role": "user", "content": parts}]) == (Message("user", "ab"),)
    with pytest.raises(rules.UnusableRowError, match="image_url"):
        prompt_of([{"role": "user", "content": [{"type": "image_url", "image_url": "a.png"}]}])
    with pytest.raises(rules.UnusableRowError, match="images"):
        prompt_of("<image> q", images=["a.png"])


def test_fields_of_messages_are_kept_for_the_template() -> None:
    asked, called, result, last = prompt_of(
        [
            {"role": "user", "content": "q", "name": None, "tool_calls": None},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "found", "name": "look"},
            {"role": "user", "content": "so?"},
        ],
        tools=[TOOL],
    )
    assert tools_of((asked, called)) == [TOOL]
    assert called.as_dict()["tool_calls"] == [{**CALL, "function": {"name": "look", "arguments": {"x": 1}}}]
    assert (called.content, result.role, result.extra(), last.fields) == ("", "tool", {"name": "look"}, "")


def test_a_response_with_fields_is_a_message_and_no_text() -> None:
    row = Row("f:1", {"prompt": "q", "chosen": [{"role": "assistant", "content": "", "tool_calls": [CALL]}]})
    _, (answer,) = read_answers(row, "prompt", "chosen")
    assert (answer.role, answer.content) == ("assistant", "")
    assert answer.extra() == {"tool_calls": [{**CALL, "function": {"name": "look", "arguments": {"x": 1}}}]}
    with pytest.raises(rules.UnusableRowError, match="tool_calls"):
        read_responses(row, "prompt", "chosen")


def test_a_system_column_is_the_first_message_and_contradicts_no_other() -> None:
    assert prompt_of("q", system="Be brief.") == (Message("system", "Be brief."), Message("user", "q"))
    with pytest.raises(DataError, match="system"):
        prompt_of([{"role": "system", "content": "Be long."}, {"role": "user", "content": "q"}], system="no")


def test_sharegpt_and_alternating_strings() -> None:
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    names = ("human", "gpt", "human")
    sharegpt = [{"from": name, "value": m.content} for name, m in zip(names, turns, strict=True)]
    assert prompt_of(sharegpt) == turns
    assert prompt_of(["a", "b", "c"]) == turns


def test_white_space_around_the_prompt_is_no_other_prompt() -> None:
    answer = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    row = Row("f:1", {"prompt": "Hi ", "chosen": answer})
    assert read_responses(row, "prompt", "chosen") == ((Message("user", "Hi"),), ["Hello"])


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("json", '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'),
        ("transcript", "\n\nHuman: a\n\nAssistant: b"),
    ],
)
def test_encoded_conversations(encoding: str, text: str) -> None:
    row = Row("f:1", {"chosen": text})
    assert read_responses(row, "prompt", "chosen", encoding=encoding) == ((Message("user", "a"),), ["b"])
    with pytest.raises(DataError, match=encoding):
        read_prompt(Row("f:1", {"prompt": "plain"}), "prompt", encoding)
    plain = Row("f:1", {"prompt": text, "chosen": "c"})
    assert read_responses(plain, "prompt", "chosen", encoding=encoding)[1] == ["c"]


def test_unknown_fields_are_noted() -> None:
    row = Row("f:1", {"prompt": [{"role": "user", "content": "q", "toxic": True}]})
    read_prompt(row, "prompt")
    assert row.noted == {"field 'toxic' of a message is not read"}
    assert DataSource(path="x").encoding == "text"
