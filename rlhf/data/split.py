"""Held-out prompts, selected by a hash of the prompt, so that equal prompts are in the same split."""

from __future__ import annotations

import hashlib
import json

from rlhf.core.records import Conversation


def held_out(conversation: Conversation, share: float, salt: str) -> bool:
    """Whether a prompt belongs to the held-out share.

    The first 64 bits of sha256(salt, messages), read as a fraction of 2^64, are compared with `share`. The
    same prompt is therefore on the same side in every source, process and run, and raising the share only
    adds prompts. Another `salt` gives an independent split.
    """
    return fraction(conversation, salt) < share * 2**64


def fraction(conversation: Conversation, salt: str) -> int:
    """The first 64 bits of sha256(salt, messages)."""
    turns = [
        [message.role, message.content, *([message.fields] if message.fields else [])]
        for message in conversation
    ]
    text = json.dumps([salt, turns], ensure_ascii=True)
    digest = hashlib.sha256(text.encode("ascii")).digest()
    return int.from_bytes(digest[:8], "big")
