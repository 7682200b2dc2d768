"""Rules that drop a well-formed row, and the reasons for the drop report."""

from __future__ import annotations

from collections.abc import Iterable

from rlhf.core.records import Conversation, Message

BLANK_PROMPT = "blank prompt"
UNANSWERABLE_PROMPT = "prompt does not end with the user's turn"
EMPTY_RESPONSE = "empty response"
IDENTICAL_RESPONSES = "identical responses"
TIE = "tie (strength 0)"
FEW_ANNOTATIONS = "fewer than three valid annotations"
UNMATCHED_ANNOTATORS = "attributes with different numbers of annotators"
NO_RATING = "no rating"
SCALE_UNKNOWN = "scale unknown"
DUPLICATE = "duplicate"
NO_PREFERENCE = "no overall preference (null)"
NO_PRINCIPLE = "empty principle"
REPEATED_KEY = "a key occurs twice in the row"
NO_ANSWER = "the conversation does not end with the assistant's answer"
DIFFERENT_TURNS = "responses to different conversations: the turns before them differ"


NO_JUSTIFICATION = "no written justification whose verdict agrees with the preference"


class UnusableRowError(Exception):
    """A row is dropped by a rule; the loader catches this and counts the row."""


def disagreement(max_spread: int) -> str:
    """The reason for a row whose annotators differ by more than `max_spread`."""
    return f"annotators disagree (spread > {max_spread})"


def with_media(kind: str) -> str:
    """The reason for a row with images, audio or their like."""
    return f"has {kind}, which a text model cannot read"


def with_fields(names: Iterable[str]) -> str:
    """The reason for a row with a message whose content is not only text."""
    return f"a message with {', '.join(sorted(names))}, of which only the text could be read"


def require_prompt(prompt: Conversation) -> None:
    """The last turn must be the user's or a tool's, and must not be blank."""
    if not prompt or prompt[-1].role not in ("user", "tool"):
        raise UnusableRowError(UNANSWERABLE_PROMPT)
    if not prompt[-1].content.strip():
        raise UnusableRowError(BLANK_PROMPT)


def require_answer(messages: Conversation) -> None:
    """The last of several turns must be the assistant's."""
    if len(messages) > 1 and messages[-1].role != "assistant":
        raise UnusableRowError(NO_ANSWER)


def require_same_turns(first: Conversation, second: Conversation) -> None:
    """Two responses must answer one conversation."""
    if not same_turns(first, second):
        raise UnusableRowError(DIFFERENT_TURNS)


def same_turns(first: Conversation, second: Conversation) -> bool:
    """Whether two conversations differ in nothing but white space around their texts."""

    def stripped(conversation: Conversation) -> list[tuple[str, str, str]]:
        return [(message.role, message.content.strip(), message.fields) for message in conversation]

    return stripped(first) == stripped(second)


def require_responses(*responses: str | Message) -> None:
    """A response must have more than white space: text, or a field such as `tool_calls`."""
    if not all(any(_without_space(response)) for response in responses):
        raise UnusableRowError(EMPTY_RESPONSE)


def require_difference(first: str | Message, second: str | Message) -> None:
    """Two responses must differ in more than the white space around them."""
    if _without_space(first) == _without_space(second):
        raise UnusableRowError(IDENTICAL_RESPONSES)


def _without_space(response: str | Message) -> tuple[str, str]:
    """The text of a response without the white space around it, and its fields."""
    if isinstance(response, str):
        return response.strip(), ""
    return response.content.strip(), response.fields


def require_strength(strength: int) -> None:
    """A preference must prefer one of the responses."""
    if strength == 0:
        raise UnusableRowError(TIE)
