"""Prompts with the same token ids."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence

from rlhf.core.errors import RefusalError
from rlhf.core.records import Conversation
from rlhf.models.chat import Chat

SAME_IDS = "both responses are the same tokens"
SAME_PROMPT = "the same tokens as an earlier prompt"


class SamePrompts:
    """Groups of prompts with the same ids, each with a representative.

    A template that strips white space gives `"Hi"` and `"Hi "` the same ids. A split by the representative
    keeps them together. A single prompt represents itself, so that its split does not depend on the
    tokenizer.
    """

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._keys: dict[Conversation, bytes] = {}
        self._representatives: dict[bytes, Conversation] = {}

    def add(self, prompts: Iterable[Conversation]) -> None:
        """Add prompts; a prompt that the template refuses is a group by itself."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._keys]
        for prompt, ids in zip(new, self._chat.prompts_ids(new), strict=True):
            if isinstance(ids, RefusalError):
                key = digest_of([]) + repr(prompt).encode("utf-8", "backslashreplace")
            else:
                key = digest_of(ids)
            current = self._representatives.get(key, prompt)
            self._keys[prompt] = key
            self._representatives[key] = min(current, prompt, key=_order)

    def representative(self, prompt: Conversation) -> Conversation:
        """The representative of all added prompts with the same ids: the first in order of text."""
        return self._representatives[self._keys[prompt]]


def digest_of(ids: Sequence[int]) -> bytes:
    """SHA-256 of a sequence of ids."""
    return hashlib.sha256(array("q", ids).tobytes()).digest()


def _order(prompt: Conversation) -> tuple[tuple[str, str, str], ...]:
    return tuple((message.role, message.content, message.fields) for message in prompt)
