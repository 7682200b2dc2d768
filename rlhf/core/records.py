"""The records that data readers, reward models and policies exchange: plain and frozen. Imports no torch.

rows -> Rating, Preference -> the reward model
rows -> Prompt -> Rollout -> the policy
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "developer", "user", "assistant", "tool"]

HELPSTEER_ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
"""The five attributes of HelpSteer2 in its order; the first, helpfulness, is the reward."""


TOOLS = "tools"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    `fields` has the other fields that a chat template may render, as a JSON object: `tool_calls`,
    `reasoning_content`, `name`, `tool_call_id`; on the first message also `tools`, those of the conversation.
    """

    role: Role
    content: str
    fields: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The message as a dictionary for chat templates and chat APIs."""
        return {"role": self.role, "content": self.content, **self.extra()}

    def extra(self) -> dict[str, Any]:
        """The decoded `fields`."""
        return dict(json.loads(self.fields)) if self.fields else {}


Conversation = tuple[Message, ...]


def tools_of(conversation: Conversation) -> list[Any] | None:
    """The tools that the conversation declares, or None."""
    return conversation[0].extra().get(TOOLS) if conversation and conversation[0].fields else None


def is_unicode(conversation: Conversation) -> bool:
    """Whether all texts are valid Unicode: JSON can contain half of a surrogate pair, which tokenizers
    reject."""
    try:
        "".join(message.content for message in conversation).encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Rating:
    """A response with attribute ratings on the scale 0 to 4; an absent attribute is not rated.

    `groups` are the groups by which results are broken down, such as domain and language; `fields` are those
    of the response's message, see `Message`. `place` is the row it was read from, `file:line`, as in every
    record of training data; it names the row in a drop report and is no part of the content.
    """

    prompt: Conversation
    response: str
    ratings: Mapping[str, float]
    source: str = ""
    groups: Mapping[str, str] = field(default_factory=dict)
    fields: str = ""
    place: str = field(default="", compare=False)

    @property
    def message(self) -> Message:
        """The response as the assistant's message."""
        return Message("assistant", self.response, self.fields)


@dataclass(frozen=True, slots=True)
class Preference:
    """Two responses to one prompt and how strongly one is preferred.

    `strength` is in -3..3 without 0: negative prefers `response_1`, positive `response_2`. With ratings of
    its responses, a preference enters both terms of the hybrid loss. `fields_1` and `fields_2` are those of
    the responses' messages, see `Message`.
    """

    prompt: Conversation
    response_1: str
    response_2: str
    strength: int
    ratings_1: Mapping[str, float] = field(default_factory=dict)
    ratings_2: Mapping[str, float] = field(default_factory=dict)
    source: str = ""
    groups: Mapping[str, str] = field(default_factory=dict)
    fields_1: str = ""
    fields_2: str = ""
    place: str = field(default="", compare=False)

    @property
    def messages(self) -> tuple[Message, Message]:
        """Both responses as the assistant's messages, in their order."""
        return (
            Message("assistant", self.response_1, self.fields_1),
            Message("assistant", self.response_2, self.fields_2),
        )

    @property
    def chosen_message(self) -> Message:
        """The preferred response as the assistant's message."""
        return self.messages[1 if self.strength > 0 else 0]

    @property
    def rejected_message(self) -> Message:
        """The other response as the assistant's message."""
        return self.messages[0 if self.strength > 0 else 1]

    @property
    def chosen(self) -> str:
        """The text of the preferred response."""
        return self.chosen_message.content

    @property
    def rejected(self) -> str:
        """The text of the other response."""
        return self.rejected_message.content


@dataclass(frozen=True, slots=True)
class Principle:
    """A response, a principle in words, and whether the response fulfils it."""

    prompt: Conversation
    response: str
    principle: str
    fulfilled: bool
    source: str = ""
    groups: Mapping[str, str] = field(default_factory=dict)
    place: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Justification:
    """Two responses to one prompt, and an annotator's text on them: the reasons, then a statement with the
    verdict."""

    prompt: Conversation
    response_1: str
    response_2: str
    elaboration: str
    statement: str
    strength: int
    source: str = ""
    groups: Mapping[str, str] = field(default_factory=dict)
    place: str = field(default="", compare=False)

    @property
    def text(self) -> str:
        """The reasons and, last, the verdict."""
        return f"{self.elaboration.strip()} {self.statement.strip()}".strip()


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt to sample answers for.

    `check` describes how code checks an answer (see `rlhf.data.checks`); `columns` are the row's other
    columns, which reward functions receive by name.
    """

    messages: Conversation
    source: str = ""
    check: Mapping[str, Any] | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    place: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One benchmark item in RewardBench's shape: a conversation, a better and a worse answer.

    `strength` is how strongly `chosen` is preferred, 1 to 3; None if unknown. The fields are those of the
    answers' messages, see `Message`.
    """

    prompt: Conversation
    chosen: str
    rejected: str
    subset: str
    section: str = ""
    strength: int | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    chosen_fields: str = ""
    rejected_fields: str = ""

    @property
    def messages(self) -> tuple[Message, Message]:
        """The better and the worse answer as the assistant's messages."""
        return (
            Message("assistant", self.chosen, self.chosen_fields),
            Message("assistant", self.rejected, self.rejected_fields),
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """One benchmark item with several right and several wrong answers; in RM-Bench one of each style.

    `id` is the id of the row, for benchmarks whose rules use it.
    """

    prompt: Conversation
    chosen: tuple[str, ...]
    rejected: tuple[str, ...]
    subset: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Answers to one prompt with their true scores, for best-of-n."""

    prompt: Conversation
    responses: tuple[str, ...]
    scores: tuple[float, ...]
    subset: str


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled answer.

    `completion_ids` includes the stop token when `finished`; `logprobs` are the engine's, one per token, of
    the distribution it sampled from (empty if the engine does not return them). `text` is the decoded answer
    without special tokens.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool
    text: str
