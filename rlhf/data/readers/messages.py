"""Read prompts and responses of rows: strings, lists of messages, and encoded conversations.

A message is `{"role", "content"}`, or ShareGPT's `{"from", "value"}`; its content is a string or a list of
parts of type `text`. Other fields of a message are kept for the chat template, which renders or refuses them;
media cannot be read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args

from rlhf.core.errors import DataError, excerpt, shorten
from rlhf.core.records import TOOLS, Conversation, Message, Role
from rlhf.data import rules
from rlhf.data.readers.encodings import decoded, looks_encoded
from rlhf.data.sources.rows import CORRECT_ROW, Row

ROLES: tuple[str, ...] = get_args(Role)
SHAREGPT = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
"""ShareGPT's names of roles, in lower case."""
MESSAGES = (
    f'a string, or a list of {{"role", "content"}} with roles {", ".join(ROLES)}, or of '
    'ShareGPT\'s {"from", "value"}'
)
RENDERED = ("tool_calls", "reasoning_content", "name", "tool_call_id", TOOLS)
"""Fields of a message that chat templates know."""
KNOWN = frozenset({"role", "content", "from", "value", *RENDERED})
SYSTEM_COLUMNS = ("system", "system_prompt")
MEDIA_COLUMNS = ("image", "images", "video", "videos", "audio", "audios")
WITH_CONTENT = frozenset(
    {
        *MEDIA_COLUMNS,
        *("function_call", "refusal", "tool_plan", "documents", "attachments"),
        *("thinking", "thinking_blocks", "reasoning", "reasoning_details", "thought", "thoughts"),
    }
)
"""Fields that carry a part of what the message says, and that no common template renders."""


def read_prompt(row: Row, column: str, encoding: str = "text") -> Conversation:
    """A prompt: a string is one turn of the user, a list of messages or of strings is a conversation.

    A list of strings holds turns of user and assistant in alternation. Columns `system` and `tools` of the
    row belong to the prompt.

    Args:
        encoding: of strings: `text`, `json` (a list of messages) or `transcript` (`Human:` and `Assistant:`
            turns).

    Raises:
        DataError: another type.
        UnusableRowError: a message, or the row, has media.
    """
    return _with_columns(row, _prompt(row, column, encoding))


def read_responses(
    row: Row, prompt_column: str, *columns: str, encoding: str = "text"
) -> tuple[Conversation, list[str]]:
    """The prompt and the texts of the responses of a row, see `read_answers`.

    Raises:
        DataError: see `read_answers`.
        UnusableRowError: a message has media, or a response has fields beside its text.
    """
    prompt, responses = read_answers(row, prompt_column, *columns, encoding=encoding)
    for response in responses:
        if response.fields:
            raise rules.UnusableRowError(rules.with_fields(response.extra()))
    return prompt, [response.content for response in responses]


def read_answers(
    row: Row, prompt_column: str, *columns: str, encoding: str = "text"
) -> tuple[Conversation, list[Message]]:
    """The prompt of a row and its responses as the assistant's messages.

    A response is a string, or a list of messages whose last one is the assistant's. The messages before it
    must be the prompt's; without a prompt column they are the prompt. They are it, too, where the two differ
    in white space around a turn, and where the prompt is a string that is a turn of the user among them.

    Raises:
        DataError: a column is missing or of another type, or the responses do not answer the prompt.
        UnusableRowError: a message has media, or the responses answer different conversations.
    """
    encoded = {column: decoded(row, column, encoding, plain=True) for column in columns}
    whole = {column: value for column, value in encoded.items() if not isinstance(value, str)}
    prompt = None
    if row.find(prompt_column) is not None:
        # Beside decoded conversations a prompt may be plain text.
        prompt = _prompt(row, prompt_column, encoding, plain=encoding == "json" and bool(whole))
    conversations = {column: _conversation(row, column, value) for column, value in whole.items()}
    earlier = [conversation[:-1] for conversation in conversations.values() if len(conversation) > 1]
    if prompt is None:
        for conversation in conversations.values():
            rules.require_answer(conversation)
    for other in earlier[1:]:
        rules.require_same_turns(earlier[0], other)
    before = earlier[0] if earlier else None
    if prompt is None and not before:
        _require_turns(row, columns, encoding)
        row.get(prompt_column)
    if before is not None and (
        prompt is None or rules.same_turns(before, prompt) or _is_turn(row.find(prompt_column), before)
    ):
        prompt = before
    assert prompt is not None  # row.get has raised
    responses = [
        Message("assistant", value)
        if isinstance(value, str)
        else _response(row, column, conversations[column], prompt)
        for column, value in encoded.items()
    ]
    return _with_columns(row, prompt), responses


def _prompt(row: Row, column: str, encoding: str, *, plain: bool = False) -> Conversation:
    value = decoded(row, column, encoding, plain=plain)
    if isinstance(value, str):
        return (Message("user", value),)
    messages = _conversation(row, column, value)
    # A transcript may end with "Assistant:", which asks for the answer.
    asks = encoding == "transcript" and messages[-1:] and messages[-1].role == "assistant"
    return messages[:-1] if asks and not messages[-1].content.strip() else messages


def _response(row: Row, column: str, messages: Conversation, prompt: Conversation) -> Message:
    if not messages or messages[-1].role != "assistant":
        raise row.wrong(column, "a string, or messages of which the last is the assistant's")
    if messages[:-1] and not rules.same_turns(messages[:-1], prompt):
        raise row.wrong(column, "one assistant message, or the prompt's own messages followed by one")
    return messages[-1]


def _is_turn(prompt: Any, conversation: Conversation) -> bool:
    """Whether a prompt is a string that a user says in a conversation."""
    texts = {message.content.strip() for message in conversation if message.role == "user"}
    return isinstance(prompt, str) and prompt.strip() in texts


def _require_turns(row: Row, columns: Sequence[str], encoding: str) -> None:
    """Without a prompt, responses must be conversations; text that looks encoded names its encoding."""
    for column in columns:
        if (looks := looks_encoded(row.find(column))) is not None and looks != encoding:
            raise DataError(
                f"{row.place}: there is no prompt, and column {column!r} is plain text that looks like an "
                f"encoded conversation: {excerpt(row.find(column))}",
                allowed="a prompt, or responses that are whole conversations",
                fix=f"set `encoding: {looks}` of this source",
            )


def _with_columns(row: Row, prompt: Conversation) -> Conversation:
    """The prompt with the row's columns `system` and `tools`; a row with media is of no use."""
    for column in MEDIA_COLUMNS:
        if row.values.get(column):
            raise rules.UnusableRowError(rules.with_media(column))
    system = _system(row)
    if system is not None and prompt[:1] != (Message("system", system),):
        if prompt and prompt[0].role == "system":
            raise row.wrong("system", "the system message that the prompt begins with, or none")
        prompt = (Message("system", system), *prompt)
    tools = row.values.get(TOOLS)
    if isinstance(tools, str) and tools.strip().startswith("["):
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{row.place}: column {TOOLS!r} is not valid JSON ({error.msg} at character {error.pos}): "
                f"{shorten(tools, error.pos)}",
                allowed="a list of tools, or the JSON text of one",
                fix=CORRECT_ROW,
            ) from None
    if tools and prompt:
        if not isinstance(tools, list):
            raise row.wrong(TOOLS, "a list of tools, as chat templates take it")
        first = prompt[0]
        prompt = (Message(first.role, first.content, _fields({**first.extra(), TOOLS: tools})), *prompt[1:])
    return prompt


def _system(row: Row) -> str | None:
    """The text of the row's column `system` or `system_prompt`, if it has one."""
    named = {name: row.values[name] for name in SYSTEM_COLUMNS if row.values.get(name)}
    for name, text in named.items():
        if not isinstance(text, str):
            raise row.wrong(name, "a string")
    if len(set(named.values())) > 1:
        raise row.wrong("system_prompt", "the text of the column 'system', or none")
    return next(iter(named.values()), None)


def _conversation(row: Row, column: str, value: Any) -> Conversation:
    if isinstance(value, Mapping):
        value = _transposed(value)
    if not isinstance(value, list):
        raise row.wrong(column, MESSAGES)
    if value and all(isinstance(item, str) for item in value):
        turns: Sequence[Role] = ("user", "assistant")
        return tuple(Message(turns[number % 2], text) for number, text in enumerate(value))
    return tuple(_message(row, column, item) for item in value)


def _transposed(value: Mapping[str, Any]) -> list[Any]:
    """The messages of an object: a single message, or lists of roles and contents, as `datasets` writes."""
    lengths = {len(items) if isinstance(items, list) else -1 for items in value.values()}
    if len(lengths) != 1 or -1 in lengths or not {"role", "from"} & value.keys():
        return [value]
    return [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]


def _message(row: Row, column: str, item: Any) -> Message:
    if not isinstance(item, Mapping):
        raise row.wrong(column, MESSAGES, value=item)
    sharegpt = item.get("role") is None and "from" in item
    name = str(item["from"] if sharegpt else item.get("role")).strip().lower()
    role = name if name in ROLES else SHAREGPT.get(name)
    if role is None:
        raise row.wrong(column, MESSAGES, value=item, around=item["from"] if sharegpt else item.get("role"))
    extra = {name: item[name] for name in RENDERED if item.get(name)}
    unread = [name for name, value in item.items() if name not in KNOWN and value not in (None, "", [], {})]
    if content_fields := [name for name in unread if name in WITH_CONTENT]:
        raise rules.UnusableRowError(rules.with_fields(content_fields))
    row.noted.update(f"field {name!r} of a message is not read" for name in unread)
    if "tool_calls" in extra:
        extra["tool_calls"] = [_call(value) for value in extra["tool_calls"]]
    content = item.get("value" if sharegpt else "content")
    if content is None and "tool_calls" in extra:
        content = ""
    if isinstance(content, list):
        content = _parts(row, column, content)
    if not isinstance(content, str):
        raise row.wrong(column, MESSAGES, value=item, around=content)
    return Message(cast(Role, role), content, _fields(extra))


def _parts(row: Row, column: str, parts: Sequence[Any]) -> str:
    texts = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif not isinstance(part, Mapping) or "type" not in part:
            raise row.wrong(column, MESSAGES, value=part)
        elif part["type"] != "text":
            raise rules.UnusableRowError(rules.with_media(str(part["type"])))
        elif not isinstance(part.get("text"), str):
            raise row.wrong(
                column, 'parts {"type": "text", "text": TEXT}', value=part, around=part.get("text")
            )
        else:
            texts.append(part["text"])
    return "".join(texts)


def _call(call: Any) -> Any:
    """A tool call with its arguments as an object, as templates need them; APIs send a JSON string."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except json.JSONDecodeError:
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def _fields(extra: Mapping[str, Any]) -> str:
    return json.dumps(extra, ensure_ascii=False, sort_keys=False, default=str) if extra else ""
