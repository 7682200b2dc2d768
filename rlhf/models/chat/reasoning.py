"""The rule for reasoning (`<think>` to `</think>`) in the input of a reward model.

keep    Leave answers unchanged. If the prompt opens the reasoning, restore its opening tag before the answer.
strip   Remove the reasoning from answers.
refuse  Do not score conversations with reasoning.

A template may add or remove reasoning itself: see `template_effects`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from jinja2 import TemplateError

from rlhf.config.schema import ReasoningRule
from rlhf.core.errors import RefusalError
from rlhf.core.records import Conversation, Message
from rlhf.models.chat.control_tokens import REASONING_TAGS

OPEN, CLOSE = REASONING_TAGS
FIELD = "reasoning_content"
"""The field of a message with reasoning outside of its content."""
CLOSED_PART = re.compile(f"{re.escape(OPEN)}.*?{re.escape(CLOSE)}\\s*", re.DOTALL)
REMOVES_LAST = "removes the reasoning of the answer that is scored"


def apply_rule(conversation: Conversation, rule: ReasoningRule, opening: str) -> Conversation:
    """The conversation that the reward model sees.

    Args:
        opening: the opening tag at the end of a prompt, see `prompt_opening`.

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
        raise RefusalError(f"with reasoning ({OPEN}), which `reasoning: refuse` excludes")
    return tuple(_stripped(message) if has_reasoning(message) else message for message in conversation)


def has_reasoning(message: Message) -> bool:
    """Whether an assistant's message contains reasoning."""
    texts = (OPEN in message.content, CLOSE in message.content, FIELD in message.extra())
    return message.role == "assistant" and any(texts)


def without_reasoning(text: str) -> str:
    """Remove reasoning.

    Without a closing tag it extends to the end, without an opening tag from the start.
    """
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
"""(messages, add_generation_prompt) -> rendered text."""
QUESTION = {"role": "user", "content": "a"}
PROBE = "probe3141"


def prompt_opening(render: Render) -> str:
    """The opening tag, with white space, if a prompt ends with it; otherwise an empty string."""
    try:
        match = re.search(f"{re.escape(OPEN)}\\s*$", render([QUESTION], True))
    except TemplateError:
        return ""
    return match[0] if match else ""


def template_effects(render: Render) -> Iterator[str]:
    """Yield what a template does with reasoning, as phrases that follow "the template"."""
    if prompt_opening(render):
        yield "opens the reasoning of each answer"
    thought = {"role": "assistant", "content": f"{OPEN}{PROBE}{CLOSE}b"}
    try:
        if OPEN in render([QUESTION, {"role": "assistant", "content": "b"}], False):
            yield "adds empty reasoning to answers without any"
        if PROBE not in render([QUESTION, thought], False):
            yield REMOVES_LAST
        elif PROBE not in render([QUESTION, thought, QUESTION], True):
            yield "removes the reasoning of earlier answers"
    except TemplateError:
        return
