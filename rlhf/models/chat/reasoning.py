"""What a reward model sees of the reasoning in an answer, between `<think>` and `</think>`: one rule for training, scoring and rollouts.

keep    as written. Where the prompt opens the reasoning, its opening tag is put back before the answer.
strip   the reasoning is removed, as if only the rest had been answered.
refuse  a conversation with reasoning is not scored.

A template may change more: `template_effects` finds what it opens, adds and removes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from jinja2 import TemplateError

from rlhf.core.errors import RefusalError
from rlhf.core.records import Conversation, Message
from rlhf.models.chat.control_tokens import REASONING_TAGS

Rule = Literal["keep", "strip", "refuse"]
OPEN, CLOSE = REASONING_TAGS
FIELD = "reasoning_content"
"""The field of a message that holds its reasoning apart from its content."""
CLOSED_PART = re.compile(f"{re.escape(OPEN)}.*?{re.escape(CLOSE)}\\s*", re.DOTALL)
REMOVES_LAST = "removes the reasoning of the answer that is scored"


def apply_rule(conversation: Conversation, rule: Rule, opening: str) -> Conversation:
    """The conversation as the reward model sees it.

    Args:
        opening: what a prompt ends with where it opens the reasoning of the answer; else empty.

    Raises:
        RefusalError: an answer has reasoning, and the rule is `refuse`.
    """
    if rule == "keep":
        last = conversation[-1]
        if not opening or CLOSE not in last.content or OPEN in last.content.partition(CLOSE)[0]:
            return conversation
        return (*conversation[:-1], replace(last, content=opening + last.content))
    if not any(map(has_reasoning, conversation)):
        return conversation
    if rule == "refuse":
        raise RefusalError(f"with reasoning ({OPEN}), which the rule `reasoning: refuse` leaves out")
    return tuple(_stripped(message) if has_reasoning(message) else message for message in conversation)


def has_reasoning(message: Message) -> bool:
    """Whether an assistant's message holds reasoning."""
    texts = (OPEN in message.content, CLOSE in message.content, FIELD in message.extra())
    return message.role == "assistant" and any(texts)


def without_reasoning(text: str) -> str:
    """The text without its reasoning; a part that is not closed reaches to the end, one that is not opened begins the text."""
    text = CLOSED_PART.sub("", text)
    text = text.rpartition(CLOSE)[2]
    return text.partition(OPEN)[0].strip()


def _stripped(message: Message) -> Message:
    fields = {name: value for name, value in message.extra().items() if name != FIELD}
    return replace(
        message,
        content=without_reasoning(message.content),
        fields=json.dumps(fields, ensure_ascii=False) if fields else "",
    )


Render = Callable[[Sequence[Mapping[str, Any]], bool], str]
"""(messages, whether a prompt for the next answer follows) -> the text that the template makes of them."""
ASKED = {"role": "user", "content": "a"}
PROBE = "probe3141"


def prompt_opening(render: Render) -> str:
    """What a prompt ends with where it opens the reasoning of the answer: the tag and white space; else empty."""
    try:
        found = re.search(f"{re.escape(OPEN)}\\s*$", render([ASKED], True))
    except TemplateError:
        return ""
    return found[0] if found else ""


def template_effects(render: Render) -> Iterator[str]:
    """What a template does with reasoning, in words that follow "the template"."""
    if prompt_opening(render):
        yield "opens the reasoning of each answer"
    thought = {"role": "assistant", "content": f"{OPEN}{PROBE}{CLOSE}b"}
    try:
        if OPEN in render([ASKED, {"role": "assistant", "content": "b"}], False):
            yield "adds empty reasoning to answers without any"
        if PROBE not in render([ASKED, thought], False):
            yield REMOVES_LAST
        elif PROBE not in render([ASKED, thought, ASKED], True):
            yield "removes the reasoning of earlier answers"
    except TemplateError:
        return
