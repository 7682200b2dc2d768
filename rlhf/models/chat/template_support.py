"""Find the roles and message fields that a chat template ignores, so that they can be refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from rlhf.core.records import TOOLS, Conversation, tools_of

PROBE = "probe3141"
"""A text that no template contains."""
USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
CALL = {"id": PROBE, "type": "function", "function": {"name": PROBE, "arguments": {}}}
TOOL = {
    "type": "function",
    "function": {"name": PROBE, "description": "d", "parameters": {"type": "object", "properties": {}}},
}
OPTIONAL = frozenset({"tool_call_id", "name"})
"""Fields of a tool message that identify its call; most templates ignore them, since the order identifies it
too."""
PROBES: dict[str, list[dict[str, Any]]] = {
    "tool_calls": [USER, {**ANSWER, "content": "", "tool_calls": [CALL]}],
    "reasoning_content": [USER, {**ANSWER, "reasoning_content": PROBE}],
    "name": [{**USER, "name": PROBE}, ANSWER],
    TOOLS: [USER, ANSWER],
    "system": [{"role": "system", "content": PROBE}, USER, ANSWER],
    "developer": [{"role": "developer", "content": PROBE}, USER, ANSWER],
    "tool": [
        USER,
        {**ANSWER, "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": PROBE * 2, "name": PROBE, "tool_call_id": PROBE},
        ANSWER,
    ],
}
"""A conversation with the probe for each role and field."""


class TemplateSupport:
    """Test whether the template renders a role or field, once, when a conversation first has it.

    Args:
        render: (messages, tools) -> rendered text.
    """

    def __init__(self, render: Callable[[Sequence[Mapping[str, Any]], list[Any] | None], str]) -> None:
        self._render = render
        self._renders: dict[str, bool] = {}

    def unrendered(self, conversation: Conversation) -> str | None:
        """The first role or field of the conversation that the template ignores; None if it renders all."""
        needed: set[str] = {message.role for message in conversation if message.role in PROBES}
        for message in conversation:
            needed.update(message.extra().keys() - (OPTIONAL if message.role == "tool" else set()))
        if not tools_of(conversation):
            needed.discard(TOOLS)
        return next((name for name in sorted(needed) if not self.renders(name)), None)

    def renders(self, name: str) -> bool:
        """Whether the template renders a role or field."""
        if name not in self._renders:
            self._renders[name] = self._try(name)
        return self._renders[name]

    def _try(self, name: str) -> bool:
        if name not in PROBES:
            return False
        try:
            text = self._render(PROBES[name], [TOOL] if name == TOOLS else None)
        except TemplateError:
            return True  # the template raises its own error, which rendering the row reports
        return (PROBE * 2 if name == "tool" else PROBE) in text
