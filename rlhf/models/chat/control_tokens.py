"""Encode control tokens only where the chat template writes them; in messages they stay text.

A tokenizer turns every `<|im_end|>` of a rendered conversation into the token that ends a turn. A policy that
spells it letter by letter could end its turn and forge a user's turn that praises it. Here the template's
control tokens are renamed to aliases, and the text is encoded by a copy of the tokenizer that has the aliases
as tokens instead. Otherwise the copy is identical, so text without control tokens has the same ids.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.core.errors import RefusalError

REASONING_TAGS = ("<think>", "</think>")
"""Written by templates and models: they mark a part of an answer, not a turn."""
SPELLED = "control tokens in the text of a message, encoded as text"
"""The entry of a data report for a row with such a message."""
TEXT_MARK, TOKEN_MARK = "\ufdd0", "\ufdd1"
"""Unicode noncharacters, which do not occur in interchanged text."""
MARKS = re.compile(f"[{TEXT_MARK}{TOKEN_MARK}]")


class ControlTokens:
    """The control tokens of a tokenizer, distinguished from text that spells them.

    Args:
        ids: id of each control token by its text.
    """

    def __init__(self, tokenizer: Any, ids: Mapping[str, int]) -> None:
        self.tokenizer, self.ids = tokenizer, dict(ids)
        self.names = list(self.ids)
        longest_first = sorted(self.names, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def spelled_in(self, value: Any) -> bool:
        """Whether a text, also within lists and dictionaries, spells a control token."""
        if isinstance(value, str):
            return self._pattern.search(value) is not None
        if isinstance(value, Mapping):
            return any(map(self.spelled_in, value.values()))
        return isinstance(value, list | tuple) and any(map(self.spelled_in, value))

    def protect(self, value: Any) -> Any:
        """The same value with every spelled control token replaced by a mark that templates keep."""
        if isinstance(value, str):
            index = {name: number for number, name in enumerate(self.names)}
            return self._pattern.sub(
                lambda match: f"{TEXT_MARK}{index[match[0]]}{TEXT_MARK}", MARKS.sub("\ufffd", value)
            )
        if isinstance(value, Mapping):
            return {key: self.protect(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.protect(item) for item in value]
        return value

    def encode(self, rendered: str) -> list[int]:
        """Ids of a rendered conversation whose messages were protected.

        Raises:
            RefusalError: the tokenizer can encode the text only as the control token.
        """
        aliased = self._pattern.sub(lambda match: self._alias(self.names.index(match[0])), rendered)
        text = re.sub(f"{TEXT_MARK}(\\d+){TEXT_MARK}", lambda match: self.names[int(match[1])], aliased)
        if not self.tokenizer.is_fast:
            raise _unsplit(self._first(text))
        inner, originals = self._with_aliases
        encoded: Sequence[int] = inner.encode(text, add_special_tokens=False).ids
        unknown = self.tokenizer.unk_token_id
        forged = set(encoded) & {token for token in self.ids.values() if token != unknown}
        if forged:
            raise _unsplit(str(self.tokenizer.convert_ids_to_tokens(min(forged))))
        return [originals.get(token, token) for token in encoded]

    @staticmethod
    def _alias(index: int) -> str:
        return f"{TOKEN_MARK}{index}{TOKEN_MARK}"

    def _first(self, text: str) -> str:
        match = self._pattern.search(text)
        return match[0] if match else ""

    @functools.cached_property
    def _with_aliases(self) -> tuple[Any, Mapping[int, int]]:
        """A copy of the tokenizer with aliases as tokens and control tokens as text.

        And alias id -> control id.
        """
        from transformers import AddedToken

        inner = copy.deepcopy(self.tokenizer.backend_tokenizer)
        inner.no_truncation()
        inner.no_padding()
        added = {token.content: token for token in self.tokenizer.added_tokens_decoder.values()}
        # Only special tokens can be disabled.
        inner.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in self.names])
        inner.encode_special_tokens = True
        aliases = []
        for index, name in enumerate(self.names):
            like = added.get(name)
            aliases.append(
                AddedToken(
                    self._alias(index),
                    special=False,
                    normalized=False,
                    lstrip=like is not None and like.lstrip,
                    rstrip=like is not None and like.rstrip,
                )
            )
        inner.add_tokens(aliases)
        originals = {
            inner.token_to_id(self._alias(index)): self.ids[name] for index, name in enumerate(self.names)
        }
        return inner, originals


def _unsplit(name: str) -> RefusalError:
    return RefusalError(f"text that spells {name}, which this tokenizer can encode only as the control token")
