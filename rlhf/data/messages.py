"""Prompts and responses as they stand in rows: plain strings, or lists of chat messages."""

from __future__ import annotations

from typing import Any, cast, get_args

from rlhf.core.records import Conversation, Message, Role
from rlhf.data.rows import Row

ROLES = get_args(Role)
MESSAGES = f'a string, or a list of {{"role", "content"}} with roles {", ".join(ROLES)}'


def read_prompt(row: Row, column: str) -> Conversation:
    """A prompt: a string is one turn of the user, a list is a conversation.

    Raises:
        DataError: neither of the two.
    """
    value = row.get(column)
    if isinstance(value, str):
        return (Message("user", value),)
    return _conversation(row, column, value)


def read_responses(row: Row, prompt_column: str, *columns: str) -> tuple[Conversation, list[str]]:
    """The prompt and the responses of a row.

    A response is a string, or a list of messages whose last is the assistant's; what precedes it there must
    be the prompt, and stands for it where the row has no prompt column.

    Raises:
        DataError: a column is missing or of another type, or a response answers another conversation.
    """
    values = [row.get(column) for column in columns]
    if row.find(prompt_column) is None and not isinstance(values[0], str):
        prompt = _conversation(row, columns[0], values[0])[:-1]
        if not prompt:
            row.get(prompt_column)
    else:
        prompt = read_prompt(row, prompt_column)
    return prompt, [_response(row, column, prompt) for column in columns]


def _response(row: Row, column: str, prompt: Conversation) -> str:
    value = row.get(column)
    if isinstance(value, str):
        return value
    messages = _conversation(row, column, value)
    if not messages or messages[-1].role != "assistant":
        raise row.wrong(column, "a string, or messages of which the last is the assistant's")
    if messages[:-1] not in ((), prompt):
        raise row.wrong(column, "one assistant message, or the prompt's own messages followed by one")
    return messages[-1].content


def _conversation(row: Row, column: str, value: Any) -> Conversation:
    if not isinstance(value, list):
        raise row.wrong(column, MESSAGES)
    return tuple(_message(row, column, item) for item in value)


def _message(row: Row, column: str, item: Any) -> Message:
    if (
        not isinstance(item, dict)
        or item.get("role") not in ROLES
        or not isinstance(item.get("content"), str)
    ):
        raise row.wrong(column, MESSAGES)
    return Message(cast(Role, item["role"]), item["content"])
