"""Prompts that are the same to a model: those with the same token ids, however their texts differ."""

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
    """Groups of prompts with the same ids, each represented by one of them.

    A template that trims makes `"Hi"` and `"Hi "` one prompt. A split that is decided by the representative keeps the two
    on one side. A prompt alone represents itself, so that its side does not depend on the tokenizer.
    """

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._keys: dict[Conversation, bytes] = {}
        self._representatives: dict[bytes, Conversation] = {}

    def add(self, prompts: Iterable[Conversation]) -> None:
        """Add prompts; the ones that the template refuses are the same as no other."""
        new = [one for one in dict.fromkeys(prompts) if one not in self._keys]
        for prompt, ids in zip(new, self._chat.prompts_ids(new), strict=True):
            if isinstance(ids, RefusalError):
                key = digest_of([]) + repr(prompt).encode("utf-8", "backslashreplace")
            else:
                key = digest_of(ids)
            known = self._representatives.get(key, prompt)
            self._keys[prompt] = key
            self._representatives[key] = min(known, prompt, key=_order)

    def representative(self, prompt: Conversation) -> Conversation:
        """The prompt that stands for all added ones with the same ids: the first by its text."""
        return self._representatives[self._keys[prompt]]


def digest_of(ids: Sequence[int]) -> bytes:
    """32 bytes that stand for a sequence of ids."""
    return hashlib.sha256(array("q", ids).tobytes()).digest()


def _order(prompt: Conversation) -> tuple[tuple[str, str, str], ...]:
    return tuple((message.role, message.content, message.fields) for message in prompt)
